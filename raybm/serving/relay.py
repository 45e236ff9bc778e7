"""Models that other endpoints answer for. The gateway asks them itself: a replica would be one hop more, and hold nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from raybm.engines.protocol import Answer, Delta, Embeddings, GenerateRequest, Relays, Scores, Tokens
from raybm.serving import scoring
from raybm.serving.unsupported import cannot, needs, no_tokenizer


class Relay:
    """A Model (serving/gateway.py) behind an engine that relays; it is asked `places` things at once, and what comes then waits."""

    def __init__(self, name: str, engine: Relays, places: int) -> None:
        self._name, self._engine = name, engine
        self._places = asyncio.Semaphore(places)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        needs(self._name, self._engine.signature, "generates")
        async with self._places, aclosing(self._engine.generate(request)) as deltas:
            async for delta in deltas:
                yield delta

    async def complete(self, request: GenerateRequest) -> Answer:
        needs(self._name, self._engine.signature, "generates")
        async with self._places:
            return await self._engine.complete(request)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        needs(self._name, self._engine.signature, "embeds")
        async with self._places:
            return await self._engine.embed_async(texts)

    async def score(self, query: str, texts: Sequence[str]) -> Scores:
        return await scoring.score(self, self._engine.signature, query, texts)

    async def predict(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        raise cannot(self._name, self._engine.signature, "predicts")

    async def tokenize(self, request: GenerateRequest, special: bool) -> Tokens:
        raise no_tokenizer(self._name)

    async def detokenize(self, ids: Sequence[int]) -> str:
        raise no_tokenizer(self._name)

"""A model under the name of one of its adapters: MODEL:ADAPTER."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from raybm.engines.protocol import Answer, Delta, Embeddings, GenerateRequest, Scores, Tokens
from raybm.serving.gateway import Model


def with_adapters(models: Mapping[str, Model], adapters: Mapping[str, Sequence[str]]) -> dict[str, Model]:
    """The models, each followed by itself with each of its adapters."""
    named: dict[str, Model] = {}
    for name, model in models.items():
        named[name] = model
        named |= {f"{name}:{adapter}": Adapted(model, adapter) for adapter in adapters.get(name, ())}
    return named


class Adapted:
    """Asks the model for answers through an adapter."""

    def __init__(self, model: Model, adapter: str) -> None:
        self._model, self._adapter = model, adapter

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        return self._model.generate(request._replace(adapter=self._adapter))

    async def complete(self, request: GenerateRequest) -> Answer:
        return await self._model.complete(request._replace(adapter=self._adapter))

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        return await self._model.embed(texts)

    async def score(self, query: str, texts: Sequence[str]) -> Scores:
        return await self._model.score(query, texts)

    async def predict(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return await self._model.predict(rows)

    async def tokenize(self, request: GenerateRequest, special: bool) -> Tokens:
        return await self._model.tokenize(request, special)

    async def detokenize(self, ids: Sequence[int]) -> str:
        return await self._model.detokenize(ids)

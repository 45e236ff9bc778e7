"""Answers that are taken to come out the same again, given from the gateway's memory. Each tenant has its own: nobody learns what others
asked.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from cachetools import TTLCache

from raybm.engines.protocol import Answer, Delta, Embeddings, GenerateRequest, Scores, Tokens
from raybm.spec.serve import AnswerCache

if TYPE_CHECKING:
    from raybm.serving.gateway import Model

T = TypeVar("T")


class Kept:
    """Answers by what was asked, pickled: their bytes are counted, and nobody shares them. The least recently used leave where they are
    too many bytes, all where they are too old."""

    def __init__(self, spec: AnswerCache) -> None:
        self._answers: TTLCache[bytes, bytes] = TTLCache(spec.max_bytes, spec.ttl_s, getsizeof=len)

    def get(self, key: bytes) -> Any:
        """None: there is none."""
        data = self._answers.get(key)
        return None if data is None else pickle.loads(data)  # noqa: S301  put here by the method below

    def put(self, key: bytes, answer: Any) -> None:
        data = pickle.dumps(answer)
        if len(data) <= self._answers.maxsize:
            self._answers[key] = data


class Cached:
    """A model for the time of one request. What a `tenant` was answered under a `name` is given to it again, and `hit` is called."""

    def __init__(self, model: Model, kept: Kept, tenant: str, name: str, hit: Callable[[], None]) -> None:
        self._model, self._kept, self._hit = model, kept, hit
        self._asker = tenant, name

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        key = self._key("generate", request) if repeats(request) else None
        if key and (kept := self._kept.get(key)):
            self._hit()
            for delta in kept:
                yield delta
            return
        deltas: list[Delta] = []
        source = self._model.generate(request)
        try:
            async for delta in source:
                deltas.append(delta)
                if key and delta.finish_reason:
                    self._kept.put(key, deltas)
                yield delta
        finally:
            await source.aclose()

    async def complete(self, request: GenerateRequest) -> Answer:
        if not repeats(request):
            return await self._model.complete(request)
        return await self._kept_or("complete", request, lambda: self._model.complete(request))

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        return await self._kept_or("embed", texts, lambda: self._model.embed(texts))

    async def score(self, query: str, texts: Sequence[str]) -> Scores:
        return await self._kept_or("score", (query, texts), lambda: self._model.score(query, texts))

    async def predict(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return await self._kept_or("predict", rows, lambda: self._model.predict(rows))

    async def tokenize(self, request: GenerateRequest, special: bool) -> Tokens:
        return await self._model.tokenize(request, special)

    async def detokenize(self, ids: Sequence[int]) -> str:
        return await self._model.detokenize(ids)

    async def _kept_or(self, method: str, argument: Any, ask: Callable[[], Awaitable[T]]) -> T:
        key = self._key(method, argument)
        kept: T | None = self._kept.get(key)
        if kept is not None:
            self._hit()
            return kept
        answer = await ask()
        self._kept.put(key, answer)
        return answer

    def _key(self, method: str, argument: Any) -> bytes:
        """Keys stay in their order: templates write out tools as they were given."""
        return hashlib.sha256(json.dumps([*self._asker, method, argument]).encode()).digest()


def repeats(request: GenerateRequest) -> bool:
    """Whether the answer is taken to be the same again: no token is drawn by chance, or all are by a seed."""
    return not request.temperature or request.seed is not None

"""What happens when a replica goes away in mid-answer: another goes on from the prompt and the tokens so far.

The client sees a pause. Whatever does not come back before the request's deadline, the gateway ends with an error.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from ray.serve.exceptions import BackPressureError

from raybm.core.errors import Overloaded
from raybm.engines.protocol import Answer, Delta, Embeddings, GenerateRequest, Scores, Tokens
from raybm.serving.gateway import Model
from raybm.serving.statuses import LOST

logger = logging.getLogger(__name__)
T = TypeVar("T")

PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Before each new try. Serve itself waits for a replica where there is none, so these are for the moment in which it does not know yet.
A request that loses one replica more without a token in between is taken for what kills them, and is given up."""
FULL = (BackPressureError, Overloaded)


class Failover:
    """A Model that asks another replica where one went away. Errors of the user and of engines are not tried again.

    Everything is safe to ask for twice: nothing that a replica does outlives its answer. The caller's deadline bounds it all.
    """

    def __init__(self, model: Model, pauses_s: Sequence[float] = PAUSES_S) -> None:
        self._model, self._pauses_s = model, pauses_s

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        request, written, tries = _drawn(request), list(request.written), Tries(self._pauses_s)
        known = True  # all tokens so far; an engine need not tell its ids, and then its answers cannot be gone on with
        while True:
            source = self._model.generate(request._replace(written=tuple(written)))
            try:
                async for delta in source:
                    written += delta.ids
                    known = known and len(delta.ids) == delta.tokens
                    tries.losses = 0
                    yield delta
                    if delta.finish_reason:
                        return
                return
            except (*LOST, *FULL) as error:
                if not known:
                    raise
                await tries.pause(error)
            finally:
                await source.aclose()

    async def complete(self, request: GenerateRequest) -> Answer:
        drawn = _drawn(request)
        return await self._again(lambda: self._model.complete(drawn))

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        return await self._again(lambda: self._model.embed(texts))

    async def score(self, query: str, texts: Sequence[str]) -> Scores:
        return await self._again(lambda: self._model.score(query, texts))

    async def predict(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return await self._again(lambda: self._model.predict(rows))

    async def tokenize(self, request: GenerateRequest, special: bool) -> Tokens:
        return await self._again(lambda: self._model.tokenize(request, special))

    async def detokenize(self, ids: Sequence[int]) -> str:
        return await self._again(lambda: self._model.detokenize(ids))

    async def _again(self, ask: Callable[[], Awaitable[T]]) -> T:
        tries = Tries(self._pauses_s)
        while True:
            try:
                return await ask()
            except (*LOST, *FULL) as error:
                await tries.pause(error)


class Tries:
    """Of one request."""

    def __init__(self, pauses_s: Sequence[float]) -> None:
        self.pauses_s = pauses_s
        self.losses = 0  # of replicas since its last token
        self.began = False

    async def pause(self, error: Exception) -> None:
        """Before another try. Raises the error where there shall be none."""
        if isinstance(error, LOST) and self.losses < len(self.pauses_s):
            logger.warning("a replica went away (%s); another is asked", type(error).__name__)
            pause_s = self.pauses_s[self.losses]
            self.losses, self.began = self.losses + 1, True
        elif isinstance(error, FULL) and self.began:  # it had its place: only newcomers are refused where there is no room
            pause_s = self.pauses_s[-1]
        else:
            raise error
        await asyncio.sleep(pause_s)


def _drawn(request: GenerateRequest) -> GenerateRequest:
    """With a seed where chance decides, so that another replica goes on with the same draws."""
    if request.temperature and request.seed is None:
        return request._replace(seed=secrets.randbits(63), drawn=True)
    return request

"""A replica: one model, one engine, no task. What its engine cannot do is refused with what it can."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from raybm.core.errors import EngineDied, RaybmError, UserError
from raybm.core.signature import Protocol
from raybm.engines.loopback import stay_on_loopback
from raybm.engines.protocol import Answer, Delta, Embeddings, GenerateRequest, Scores, Tokenizes, Tokens
from raybm.serving import coldstart, scoring, tracing
from raybm.serving.batching import Batcher
from raybm.serving.logs import log_with_serve
from raybm.serving.parcel import packed, unpacked
from raybm.serving.unsupported import needs, no_tokenizer
from raybm.serving.watch import Watch

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


class Replica:
    """Answers for one model. Texts of all requests meet in the batches of encoders; generation is batched by the engine."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, name: str, load: Callable[..., Any], max_batch: int, batch_wait_ms: float, version: str = "", *prefill_handle: Any
    ) -> None:
        log_with_serve()
        stay_on_loopback()
        self.name, self.closed = name, False
        self.watch = Watch(name, version, tracing.tracer("raybm-replica"))
        self.engine, self.parts = await coldstart.started(partial(load, *prefill_handle))
        self.watch.started(self.parts)
        self._vectors = Batcher(partial(self._computed, self._embedded), max_batch, batch_wait_ms / 1000)
        self._rows = Batcher(partial(self._computed, lambda rows: self.engine.predict(rows)), max_batch, batch_wait_ms / 1000)
        logger.info("model %s is ready: %s; started in %s", name, ", ".join(self.engine.signature.protocols), coldstart.line(self.parts))

    def __del__(self) -> None:
        self.closed = True
        if engine := getattr(self, "engine", None):  # None: the model did not load
            engine.close()

    def check_health(self) -> None:
        """Serve asks now and then, and replaces the replica when this raises."""
        self.engine.check()

    def cold_start(self) -> dict[str, float]:
        """Seconds that each part of this replica's start took."""
        return self.parts

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks for them where an autoscaling policy goes by them."""
        return self.watch.stats()

    async def call(self, method: str, parcel: bytes) -> bytes:
        """One of complete, embed, score, predict, tokenize, detokenize, with its packed argument and Origin. A RaybmError is returned, not
        raised: Serve logs a traceback for every error that a replica raises, and a client's mistake is none of ours."""
        argument, origin = unpacked(parcel)
        with self.watch.request(method, origin):
            try:
                return packed(await getattr(self, method)(argument))
            except RaybmError as error:
                self._end_if_dead(error)
                return packed(error)

    async def stream(self, parcel: bytes) -> AsyncIterator[bytes]:
        """`generate`, of a packed request and Origin, with a RaybmError as its last item."""
        request, origin = unpacked(parcel)
        with self.watch.request("stream", origin):
            try:
                async for delta in self.generate(request):
                    yield packed(delta)
            except RaybmError as error:
                self._end_if_dead(error)
                yield packed(error)

    def _end_if_dead(self, error: RaybmError) -> None:
        """A process whose engine is dead would refuse everything at once, and so be asked more than the others until Serve's next looks
        at its health. Its end is noticed at once: the requests go to other replicas, and it is replaced."""
        if isinstance(error, EngineDied) and not self.closed:
            logger.critical("%s: %s This process ends.", self.name, error)
            logging.shutdown()
            os._exit(1)

    def _needs(self, protocol: Protocol) -> None:
        needs(self.name, self.engine.signature, protocol)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Delta]:
        """A streamed generation. When the caller goes away, Serve cancels this, and closing the engine's iterator frees its slot."""
        self._needs("generates")
        deltas = self.watch.tokens(self.engine.generate(request))
        try:
            async for delta in deltas:
                yield delta
        finally:
            await deltas.aclose()

    async def complete(self, request: GenerateRequest) -> Answer:
        """A generation in one piece: one message over the wire instead of one a token."""
        self._needs("generates")
        deltas = [delta async for delta in self.watch.tokens(self.engine.generate(request))]
        if not deltas:
            raise RuntimeError(f"the engine of {self.name} ended without an answer")
        return Answer.of(deltas)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        self._needs("embeds")
        with self.watch.rows(len(texts)):
            rows = await _all(self._vectors.ask(text) for text in texts)
        return Embeddings(np.stack([vector for vector, _ in rows]), tuple(tokens for _, tokens in rows))

    async def score(self, asked: tuple[str, Sequence[str]]) -> Scores:
        """`asked`: a text, and those that are compared with it."""
        return await scoring.score(self, self.engine.signature, *asked)

    async def predict(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of the signature's inputs → rows of its outputs."""
        self._needs("predicts")
        with self.watch.rows(len(rows)):
            return list(await _all(self._rows.ask(row) for row in rows))

    async def tokenize(self, asked: tuple[GenerateRequest, bool]) -> Tokens:
        """`asked`: the prompt or messages, and whether with what the tokenizer puts around a prompt."""
        return await asyncio.to_thread(self._tokenizer().tokenize, *asked)

    async def detokenize(self, ids: Sequence[int]) -> str:
        return await asyncio.to_thread(self._tokenizer().detokenize, ids)

    def _tokenizer(self) -> Tokenizes:
        if not isinstance(self.engine, Tokenizes):
            raise no_tokenizer(self.name)
        return self.engine

    async def _computed(self, compute: Callable[[list[T]], list[R]], inputs: list[T]) -> list[R | Exception]:
        with self.watch.computing(len(inputs)):
            return await asyncio.to_thread(_each, compute, inputs)

    def _embedded(self, texts: list[str]) -> list[tuple[np.ndarray[Any, Any], int]]:
        result: Embeddings = self.engine.embed(texts)
        return list(zip(result.vectors, result.tokens or (0,) * len(texts), strict=True))


def _each(compute: Callable[[list[T]], list[R]], inputs: list[T]) -> list[R | Exception]:
    """Results of a batch, in which several requests meet: an input that the engine cannot take is an error of its own request only."""
    try:
        return list(compute(inputs))
    except Exception as error:  # an edge between requests
        if isinstance(error, EngineDied):
            raise
        from torch import AcceleratorError

        if isinstance(error, AcceleratorError):  # sticky: whatever this process asks of its GPU from now on fails
            raise EngineDied(f"the GPU failed: {error}", remedy="See the replica's log; it is started again.") from error
        return [error] if len(inputs) == 1 else [one for each in inputs for one in _each(compute, [each])]


async def _all(asked: Iterable[Awaitable[R | Exception]]) -> list[R]:
    """What came of the inputs of one request. Raises the first error."""
    found = await asyncio.gather(*asked)
    results: list[R] = []
    for place, result in enumerate(found):
        if isinstance(result, UserError) and len(found) > 1:
            raise type(result)(f"input {place}: {result.what}", where=result.where, remedy=result.remedy)
        if isinstance(result, Exception):
            raise result
        results.append(result)
    return results

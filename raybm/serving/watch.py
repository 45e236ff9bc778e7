"""What a replica has under way: for its metrics (through Ray's exporter), its spans and its autoscaling."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field

from opentelemetry.trace import Tracer
from ray.serve import metrics

from raybm.engines.protocol import Delta
from raybm.serving import tracing
from raybm.serving.metrics import SECONDS
from raybm.serving.records import Histogram, Records

WINDOW_S = 30.0  # of the times to the first token that autoscaling goes by
_SIZES = [float(2**power) for power in range(10)]
_asked: ContextVar[float] = ContextVar("asked")  # when the gateway asked for what this task works on, by this process' clock


@dataclass(frozen=True)
class Origin:
    """What comes with a request from the gateway."""

    sent: float = field(default_factory=time.time)
    carrier: dict[str, str] = field(default_factory=tracing.carrier)


@dataclass(eq=False)
class _Generation:
    asked: float
    tokens: int = 0  # of the prompt and the answer; 0 until the first comes


class Watch:
    def __init__(self, model: str, version: str, tracer: Tracer, clock: Callable[[], float] = time.monotonic) -> None:
        self._tracer, self._clock, self._model, self._version = tracer, clock, model, version
        self._records = Records()
        self._generations: set[_Generation] = set()
        self._rows = 0  # asked for, and not answered yet
        self._computed = 0  # of them, now
        self._first: deque[tuple[float, float]] = deque()  # when, and how long after it was asked for
        tags = ("model", "version")
        self._queue = Histogram("raybm_queue_seconds", "From the gateway to a replica that takes it.", SECONDS, tags)
        self._batch = Histogram("raybm_batch_size", "Inputs computed together.", _SIZES, tags)
        self._cold = metrics.Gauge("raybm_cold_start_seconds", "Parts of this replica's start.", tag_keys=(*tags, "part"))

    def started(self, parts: dict[str, float]) -> None:
        for part, seconds in parts.items():
            self._cold.set(seconds, {"model": self._model, "version": self._version, "part": part})

    @contextmanager
    def request(self, method: str, origin: Origin) -> Iterator[None]:
        """Of a request that the replica has taken. The clocks of two machines may differ: a wait is never less than nothing."""
        waited = max(0.0, time.time() - origin.sent)
        self._records.observe(self._queue, waited, self._model, self._version)
        asked = _asked.set(self._clock() - waited)
        told = {"gen_ai.request.model": self._model, "raybm.queue_s": waited}
        span = tracing.begin(self._tracer, f"replica {method}", origin.carrier, **told)
        try:  # not made current: a stream's context is not the one that it is closed in
            yield
        finally:
            span.end()
            with suppress(ValueError):  # a context that ends with the stream
                _asked.reset(asked)

    def batch(self, size: int) -> None:
        """So many rows, or generations, are computed together."""
        self._records.observe(self._batch, size, self._model, self._version)

    @contextmanager
    def rows(self, count: int) -> Iterator[None]:
        """So many have been asked for; they are answered at the end."""
        self._rows += count
        try:
            yield
        finally:
            self._rows -= count

    @contextmanager
    def computing(self, count: int) -> Iterator[None]:
        """So many of the rows are computed together."""
        self.batch(count)
        self._computed += count
        try:
            yield
        finally:
            self._computed -= count

    async def tokens(self, deltas: AsyncGenerator[Delta]) -> AsyncGenerator[Delta]:
        """The deltas; closes them however this ends."""
        generation = _Generation(_asked.get(self._clock()))
        self._generations.add(generation)
        try:
            async for delta in deltas:
                if not generation.tokens:
                    self._begun(generation)
                    generation.tokens = delta.prompt_tokens
                generation.tokens += delta.tokens
                yield delta
        finally:
            self._generations.discard(generation)
            await deltas.aclose()

    def _begun(self, generation: _Generation) -> None:
        now = self._clock()
        self._first.append((now, now - generation.asked))
        self._forget(now)
        self.batch(1 + sum(one.tokens > 0 for one in self._generations))

    def _forget(self, now: float) -> None:
        while self._first and self._first[0][0] < now - WINDOW_S:
            self._first.popleft()

    def stats(self) -> dict[str, float]:
        """For the autoscaling policies: generations `waiting` for their first token, or rows for their batch; `tokens` in flight; and
        `ttft_s`, the mean of the last half minute or the age of the oldest that waits, where that is more."""
        now = self._clock()
        self._forget(now)
        waits = [now - one.asked for one in self._generations if not one.tokens]
        mean = sum(seconds for _, seconds in self._first) / len(self._first) if self._first else 0.0
        return {
            "waiting": float(len(waits) + max(0, self._rows - self._computed)),
            "tokens": float(sum(one.tokens for one in self._generations)),
            "ttft_s": max([mean, *waits]),
        }

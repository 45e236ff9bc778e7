"""Whether a model has room for one more request, and whether that one can be answered in time. What cannot is refused at once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from raybm.engines.protocol import Answer, Delta, Embeddings, GenerateRequest, Scores, Tokens
from raybm.serving.limits import Refused
from raybm.spec.serve import GatewaySpec, ServedModel

if TYPE_CHECKING:
    from raybm.serving.gateway import Model

RECENT = 32  # answers that tell how fast a model is
FEW = 8  # fewer than these tell nothing


class NoRoom(Refused):
    """The model has too many requests, or too many to answer one more before its deadline (503)."""


class Queue:
    """The requests to one model that are in this gateway.

    Where n are here and r a second are answered, one that comes now is answered after (n + 1) / r seconds (Little 1961). r is that of the
    last answers while more than `places` were here, those that the replicas hold that always run: else nobody waits, and the
    rate tells how fast people ask.
    """

    def __init__(self, places: int, room: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.places, self.room, self.here = places, room, 0
        self._clock = clock
        self._answered: deque[float] = deque(maxlen=RECENT)

    def enter(self, left_s: float) -> None:
        """One more, to be answered within `left_s`. Raises NoRoom."""
        takes_s = self.takes_s()
        if self.here >= self.room:
            raise NoRoom(f"the model has {self.here} requests already.", remedy="Try again later.", retry_after_s=takes_s or 1.0)
        if takes_s > left_s:
            what = f"the model has {self.here} requests already; an answer would take about {takes_s:.0f} s, and has {left_s:.0f} s."
            raise NoRoom(what, remedy="Try again later, or allow more time.", retry_after_s=takes_s - left_s)
        self.here += 1

    def leave(self, *, answered: bool) -> None:
        if self.here <= self.places:
            self._answered.clear()
        elif answered:
            self._answered.append(self._clock())
        self.here -= 1

    def takes_s(self) -> float:
        """Until the answer to a request that comes now; 0 where nobody waits, or nothing is known."""
        if self.here < self.places or len(self._answered) < FEW:
            return 0.0
        return (self.here + 1) * (self._clock() - self._answered[0]) / (len(self._answered) - 1)


class Queued:
    """A model for the time of one request, which takes its place in the queue (`enter`, which may raise NoRoom) when the model is first
    asked for an answer: what a cache knows needs none, nor does tokenising, which no device is asked for."""

    def __init__(self, model: Model, enter: Callable[[], None]) -> None:
        self._model, self._enter, self._entered = model, enter, False

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        self._once()
        return self._model.generate(request)

    def complete(self, request: GenerateRequest) -> Coroutine[Any, Any, Answer]:
        self._once()
        return self._model.complete(request)

    def embed(self, texts: Sequence[str]) -> Coroutine[Any, Any, Embeddings]:
        self._once()
        return self._model.embed(texts)

    def score(self, query: str, texts: Sequence[str]) -> Coroutine[Any, Any, Scores]:
        self._once()
        return self._model.score(query, texts)

    def predict(self, rows: Sequence[dict[str, Any]]) -> Coroutine[Any, Any, list[dict[str, Any]]]:
        self._once()
        return self._model.predict(rows)

    def tokenize(self, request: GenerateRequest, special: bool) -> Coroutine[Any, Any, Tokens]:
        return self._model.tokenize(request, special)

    def detokenize(self, ids: Sequence[int]) -> Coroutine[Any, Any, str]:
        return self._model.detokenize(ids)

    def _once(self) -> None:
        if not self._entered:
            self._enter()
            self._entered = True


def size(model: ServedModel, gateway: GatewaySpec) -> tuple[int, int]:
    """The places and the room of a Queue: a gateway replica's share of the places, and all of them with Serve's own queue before them."""
    scale, each = model.autoscaling, model.max_ongoing_requests
    if not model.engine.WEIGHTS:  # each gateway asks by itself
        return each, each + model.max_queued_requests
    places = max(1, max(1, scale.min_replicas) * each // gateway.replicas)  # of one that sleeps: the first that wakes
    return places, scale.max_replicas * each + model.max_queued_requests

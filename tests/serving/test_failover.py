"""Replicas that die at every point, in this process: what the client gets is what it would have got."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayTaskError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError

from raybm.core.errors import Overloaded, UserError
from raybm.engines.protocol import Answer, Delta, GenerateRequest
from raybm.serving.failover import PAUSES_S, Failover
from tests.fakes import EchoEngine, LengthClassifier, LocalModel
from tests.serving.gateway import ask, chat, chunks, make_app, refusal

WORDS = "one two three four five"
NO_PAUSES = [0.0] * len(PAUSES_S)
LOST: dict[str, Callable[[], Exception]] = {
    "died": ActorDiedError,
    "unavailable": lambda: ActorUnavailableError("gone", b"0" * 16),
    "replica": lambda: ReplicaUnavailableError("r"),
    "result": lambda: ObjectLostError("0", None, ""),
    "connection": lambda: AioRpcError(StatusCode.UNAVAILABLE, Metadata(), Metadata()),
    "in a task": lambda: RayTaskError("f", "", ActorDiedError()).as_instanceof_cause(),
}


class Dying(LocalModel):
    """Its n-th call dies after `deaths[n]` deltas (unary: before the answer); the calls after those live."""

    def __init__(self, deaths: Sequence[int], error: Callable[[], Exception] = ActorDiedError, engine: Any = None) -> None:
        super().__init__(engine or EchoEngine())
        self.deaths, self.error, self.asked = list(deaths), error, list[GenerateRequest]()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        self.asked.append(request)
        left = self.deaths.pop(0) if self.deaths else None
        deltas = super().generate(request)
        try:
            async for delta in deltas:
                if left == 0:
                    raise self.error()
                left = None if left is None else left - 1
                yield delta
        finally:
            await deltas.aclose()

    def die(self) -> None:
        if self.deaths:
            self.deaths.pop()
            raise self.error()

    async def complete(self, request: GenerateRequest) -> Answer:
        self.asked.append(request)
        self.die()
        return await LocalModel(self.engine).complete(request)

    async def embed(self, texts: Any) -> Any:
        self.die()
        return await super().embed(texts)

    async def predict(self, rows: Any) -> Any:
        self.die()
        return await super().predict(rows)


def asked(content: str = WORDS, **more: Any) -> GenerateRequest:
    return GenerateRequest(messages=[{"role": "user", "content": content}], **more)


def stream(model: Any, request: GenerateRequest) -> list[Delta]:
    async def go() -> list[Delta]:
        async with asyncio.timeout(10):
            return [delta async for delta in Failover(model, NO_PAUSES).generate(request)]

    return asyncio.run(go())


def undisturbed() -> list[Delta]:
    return stream(LocalModel(EchoEngine()), asked())


@pytest.mark.parametrize("after", range(5))
def test_a_death_after_any_token(after: int) -> None:
    """Also before the first and during the last one."""
    model = Dying([after])
    assert stream(model, asked()) == undisturbed()
    assert [len(request.written) for request in model.asked] == [0, after]


@pytest.mark.parametrize("deaths", [[2, 0, 1], [0, 0], [1, 1, 1, 1], [0, 1, 0, 0, 3]])
def test_deaths_one_after_another(deaths: list[int]) -> None:
    model = Dying(deaths)
    assert stream(model, asked()) == undisturbed()
    assert model.asked[-1].written == tuple(range(sum(deaths)))


@pytest.mark.parametrize("error", LOST.values(), ids=LOST)
def test_what_counts_as_a_death(error: Callable[[], Exception]) -> None:
    assert "".join(delta.text for delta in stream(Dying([1], error), asked())) == WORDS


@pytest.mark.parametrize("error", [UserError("no."), Overloaded("full."), BackPressureError(1, 1), RuntimeError("a bug")])
def test_other_errors_are_not_tried_again(error: Exception) -> None:
    model = Dying([1], lambda: error)
    with pytest.raises(type(error)):
        stream(model, asked())
    assert len(model.asked) == 1


def test_a_request_that_kills_every_replica_is_given_up() -> None:
    deaths = [0] * 100
    for answer in (lambda model: stream(model, asked()), lambda model: asyncio.run(Failover(model, NO_PAUSES).complete(asked()))):
        model = Dying(deaths)
        with pytest.raises(ActorDiedError):
            answer(model)
        assert len(model.asked) == len(PAUSES_S) + 1


@pytest.mark.parametrize("full", [BackPressureError(1, 1), Overloaded("no room.")])
def test_whoever_lost_a_replica_waits_for_room_on_another(full: Exception) -> None:
    def errors() -> Callable[[], Exception]:
        coming = iter([ActorDiedError(), *[full] * 50])
        return lambda: next(coming)

    assert stream(Dying([2, *[0] * 50], errors()), asked()) == undisturbed()
    model = Dying([0] * 51, errors())
    assert asyncio.run(Failover(model, NO_PAUSES).complete(asked())).text == WORDS


def test_an_engine_that_tells_no_ids_is_not_made_to_repeat_itself() -> None:
    class Silent(EchoEngine):
        async def generate(self, request: GenerateRequest) -> Any:
            async for delta in super().generate(request):
                yield Delta(delta.text, delta.tokens, delta.prompt_tokens, delta.finish_reason)

    assert "".join(delta.text for delta in stream(Dying([0], engine=Silent()), asked())) == WORDS
    with pytest.raises(ActorDiedError):
        stream(Dying([1], engine=Silent()), asked())


def test_draws_are_the_same_on_the_next_replica() -> None:
    model = Dying([0, 2])
    stream(model, asked())
    asyncio.run(Failover(model).complete(asked()))
    first, second, third, other = (request.seed for request in model.asked)
    assert first == second == third is not None and other not in (None, first)
    model = Dying([0])
    stream(model, asked(temperature=0.0))
    stream(model, asked(seed=7))
    assert [request.seed for request in model.asked] == [None, None, 7]


def test_unary_answers() -> None:
    async def go() -> None:
        assert (await Failover(Dying([0, 0]), NO_PAUSES).complete(asked())).text == WORDS
        for method, argument in (("embed", ["a"]), ("predict", [{"text": "a"}])):
            model = Dying([0, 0], engine=LengthClassifier())
            await getattr(Failover(model, NO_PAUSES), method)(argument)
            assert not model.deaths

    asyncio.run(go())


def test_whoever_closes_the_stream_closes_the_replicas() -> None:
    async def go() -> None:
        engine = EchoEngine()
        running = Failover(Dying([1], engine=engine), NO_PAUSES).generate(asked("!slow"))
        for _ in range(3):
            await anext(running)
        await running.aclose()
        assert (engine.begun, engine.closed) == (2, 2)

    asyncio.run(go())


class Gone(LocalModel):
    """One replica, which dies after two tokens; there is never another."""

    def __init__(self) -> None:
        super().__init__(EchoEngine())
        self.begun = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        if self.begun:
            await asyncio.Event().wait()
        self.begun = True
        for index, word in enumerate(("one ", "two ")):
            yield Delta(word, 1, 2, None, (index,))
        raise ActorDiedError

    async def complete(self, request: GenerateRequest) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError


def test_nobody_answers_before_the_deadline() -> None:
    """An error event, never a cut; a status where nothing is out yet."""
    app = make_app(models={"chat": Failover(Gone(), NO_PAUSES)}, request_timeout_s=0.3)
    *pieces, last = chunks(ask(app, "POST", "/v1/chat/completions", json=chat("x", stream=True)))
    assert [piece["choices"][0]["delta"]["content"] for piece in pieces] == ["one ", "two "]
    assert last["error"]["code"] == "deadline_exceeded"
    for stream in (False, True):
        refusal(ask(app, "POST", "/v1/chat/completions", json=chat("x", stream=stream)), 504, "deadline_exceeded")


def test_tokens_are_counted_once() -> None:
    app = make_app(models={"chat": Failover(Dying([2, 1]), NO_PAUSES)})
    asked = chat(WORDS, stream=True, stream_options={"include_usage": True})
    *_, usage, done = chunks(ask(app, "POST", "/v1/chat/completions", json=asked))
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10} and done == "[DONE]"

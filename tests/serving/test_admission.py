"""What is refused at once, and what ends clients that are slow."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from raybm.serving import limits, sse
from raybm.serving.admission import FEW, NoRoom, Queue, size
from raybm.serving.cache import Kept
from raybm.serving.gateway import Gateway
from raybm.serving.routes import create_app
from raybm.spec.serve import AnswerCache, GatewaySpec, ServedModel
from tests.fakes import EchoEngine, LengthClassifier, LocalModel
from tests.serving.gateway import ask, chat, make_app, nothing_missing, refusal


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def saturated(clock: Clock, here: int, seconds_an_answer: float) -> Queue:
    """Two places, and so many requests; as many came as were answered."""
    queue = Queue(2, 100, clock)
    for _ in range(here):
        queue.enter(1)
    for _ in range(FEW):
        clock.now += seconds_an_answer
        queue.leave(answered=True)
        queue.enter(1000)
    return queue


def test_what_would_come_too_late_is_refused(clock: Clock) -> None:
    queue = saturated(clock, 9, 2.0)
    assert queue.takes_s() == pytest.approx(20)
    queue.enter(21)
    with pytest.raises(NoRoom, match=r"about 22 s, and has 15 s") as refused:
        queue.enter(15)
    assert refused.value.retry_after_s == pytest.approx(7)


def test_a_model_that_stands_still_is_found_out(clock: Clock) -> None:
    queue = saturated(clock, 9, 2.0)
    clock.now += 70
    assert queue.takes_s() == pytest.approx(10 * 84 / 7)


def test_nothing_is_guessed_while_nobody_waits(clock: Clock) -> None:
    queue = Queue(2, 100, clock)
    for _ in range(50):  # one request a minute says nothing about how fast answers come
        queue.enter(1)
        clock.now += 60
        queue.leave(answered=True)
    for _ in range(50):
        queue.enter(1)
    queue = saturated(clock, 9, 2.0)
    for _ in range(9):
        queue.leave(answered=True)
    assert queue.here == 0 and queue.takes_s() == 0


def test_answers_that_failed_are_no_answers(clock: Clock) -> None:
    queue = saturated(clock, 9, 2.0)
    for _ in range(5):
        queue.leave(answered=False)
        queue.enter(1000)
    assert queue.takes_s() == pytest.approx(20)


def test_the_room_is_bounded(clock: Clock) -> None:
    queue = Queue(2, 3, clock)
    for _ in range(3):
        queue.enter(1)
    with pytest.raises(NoRoom, match="3 requests already") as refused:
        queue.enter(1)
    assert refused.value.retry_after_s == 1
    queue.leave(answered=True)
    queue.enter(1)


def test_the_size_follows_the_spec() -> None:
    model = ServedModel.parse(
        {
            "name": "m",
            "ref": "file:/x",
            "max_ongoing_requests": 10,
            "max_queued_requests": 7,
            "autoscaling": {"min_replicas": 3, "max_replicas": 4},
        }
    )
    assert size(model, GatewaySpec(replicas=2)) == (15, 47)
    assert size(ServedModel.parse({"name": "m", "ref": "file:/x", "autoscaling": {"min_replicas": 0}}), GatewaySpec())[0] == 64


def test_a_full_model_is_503_and_leaves_room_again() -> None:
    async def go() -> None:
        queue = Queue(1, 1)
        app = create_app(Gateway(GatewaySpec(), {"chat": LocalModel(EchoEngine())}, nothing_missing, queues={"chat": queue}))
        for stream in (True, False):
            running = asyncio.create_task(
                asyncio.to_thread(ask, app, "POST", "/v1/chat/completions", json=chat("!slow", stream=stream, max_tokens=20))
            )
            while not queue.here:
                await asyncio.sleep(0)
            response = await asyncio.to_thread(ask, app, "POST", "/v1/chat/completions", json=chat("x"))
            assert "1 requests already" in refusal(response, 503, "overloaded")["message"] and response.headers["retry-after"] == "1"
            assert (await running).status_code == 200 and queue.here == 0
        for body in (b"{", json.dumps(chat("!bug")).encode(), json.dumps(chat("!long", stream=True)).encode()):
            assert (await asyncio.to_thread(ask, app, "POST", "/v1/chat/completions", content=body)).status_code >= 400 and queue.here == 0

    asyncio.run(go())


def test_what_the_model_is_not_asked_for_needs_no_room() -> None:
    async def go() -> None:
        queue, kept = Queue(1, 1), {"chat": Kept(AnswerCache())}
        app = create_app(Gateway(GatewaySpec(), {"chat": LocalModel(EchoEngine())}, nothing_missing, queues={"chat": queue}, kept=kept))

        async def status(path: str, body: dict[str, Any]) -> int:
            return int((await asyncio.to_thread(ask, app, "POST", path, json=body)).status_code)

        known = [chat("x", stream=stream, temperature=0) for stream in (False, True)]
        assert [await status("/v1/chat/completions", body) for body in known] == [200, 200] and queue.here == 0
        running = asyncio.create_task(status("/v1/chat/completions", chat("!slow", max_tokens=20)))
        while not queue.here:
            await asyncio.sleep(0)
        assert [await status("/v1/chat/completions", body) for body in (*known, chat("y", temperature=0, n=2))] == [200, 200, 503]
        assert await status("/tokenize", {"model": "chat", "prompt": "x"}) == 200
        assert queue.here == 1 and await running == 200 and queue.here == 0

    asyncio.run(go())


def test_a_client_may_have_less_time_than_the_gateway_gives() -> None:
    app = make_app(models={"chat": LocalModel(EchoEngine()), "size": LocalModel(LengthClassifier())})
    stuck = ask(app, "POST", "/v1/chat/completions", json=chat("!stuck"), headers={"x-request-timeout": "0.1"})
    refusal(stuck, 504, "deadline_exceeded")
    for wrong in ("soon", "0", "-1", "nan"):
        error = refusal(
            ask(app, "POST", "/v1/chat/completions", json=chat("x"), headers={"x-request-timeout": wrong}), 400, "invalid_request"
        )
        assert "x-request-timeout" in error["message"]
    assert ask(app, "POST", "/v1/chat/completions", json=chat("x"), headers={"x-request-timeout": "inf"}).status_code == 200


def test_headers_are_bounded() -> None:
    for place in (
        {"headers": {"x-a": "a" * 64_000}},
        {"headers": [(f"x-{n}", "a" * 100) for n in range(700)]},
        {"params": {"a": "a" * 64_000}},
    ):
        refusal(ask(make_app(), "GET", "/v1/models", **place), 431, "headers_too_large")


def test_a_body_that_trickles_in_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_S", 0.05)

    async def forever() -> Any:
        yield b"{"
        await asyncio.Event().wait()

    refusal(ask(make_app(), "POST", "/v1/classify", content=forever()), 408, "body_too_slow")


def test_a_client_that_does_not_read_its_stream_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "LAST_WORDS_S", 0.05)
    engine = EchoEngine()
    app = make_app(models={"chat": LocalModel(engine)}, request_timeout_s=1.0)
    body = json.dumps(chat("!slow", stream=True)).encode()
    inbox = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if inbox:
            return inbox.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # its buffers are full

    async def go() -> None:
        scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST"}
        async with asyncio.timeout(10):
            await app({**scope, "path": "/v1/chat/completions", "query_string": b"", "headers": []}, receive, send)

    asyncio.run(go())
    assert (engine.begun, engine.closed) == (1, 1)

"""The remote engine against an endpoint that misbehaves as it is told to."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from raybm.core.errors import DeadlineExceeded, NotFound, Overloaded, RaybmError, SpecError, UpstreamFailed, UserError
from raybm.core.storage import open_storage
from raybm.engines.protocol import Answer, GenerateRequest
from raybm.engines.remote import wire
from raybm.engines.remote.spec import Remote
from raybm.engines.transformers.spec import Transformers
from raybm.serving import statuses
from raybm.spec.serve import ServedModel
from tests.engines import members, tiny
from tests.listening import listening

pytestmark = pytest.mark.integration
STORAGE = open_storage("/nowhere")
KEY = "sk-secret-of-the-house"


class Endpoint:
    """The last message says what to do. Keeps what it was asked, and whether a stream's client left."""

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, Any], str | None]] = []
        self.ports: list[int] = []
        self.left, self.lists = threading.Event(), 200
        self.app = Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            ]
        )

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "there"}]}, self.lists)

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append((body, request.headers.get("authorization")))
        self.ports.append(request.scope["client"][1])
        what = body["messages"][-1]["content"]
        if what.isdigit():
            return JSONResponse({"error": {"message": "temperature is too hot"}}, int(what), {"x-secret": "a header"})
        if what == "silence":
            await asyncio.sleep(30)
        if what == "nonsense":
            return Response("<html>", media_type="text/event-stream" if body.get("stream") else "application/json")
        if not body.get("stream"):
            message = {"role": "assistant", "content": "two tokens"}
            usage = {"prompt_tokens": 5, "completion_tokens": 2}
            return JSONResponse({"choices": [{"index": 0, "message": message, "finish_reason": "length"}], "usage": usage})
        return StreamingResponse(self.stream(what), media_type="text/event-stream")

    async def stream(self, what: str) -> AsyncIterator[str]:
        try:
            yield ": a comment\n\n"
            yield _chunk({"role": "assistant", "content": ""})
            yield _chunk({"content": "three tokens in "})
            if what == "cut":
                return
            if what == "error":
                yield 'data: {"error": {"message": "secret of the house"}}\n\n'
                return
            while what == "endless":
                await asyncio.sleep(0.01)
                yield _chunk({"content": "x"})
            yield _chunk({"content": "one"})
            yield _chunk({}, "stop")
            yield 'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 4}}\n\n'
            yield "data: [DONE]\n\n"
        finally:
            self.left.set()

    async def embeddings(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append((body, request.headers.get("authorization")))
        data = [{"index": i, "embedding": [float(len(text)), 1.0]} for i, text in enumerate(body["input"])]
        return JSONResponse({"data": data[::-1], "usage": {"prompt_tokens": 3 * len(data)}})


def _chunk(delta: dict[str, str], reason: str | None = None) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': reason}]})}\n\n"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Endpoint, str]]:
    endpoint = Endpoint()
    with listening(endpoint.app) as url:
        yield endpoint, f"{url}/v1"


def engine(url: str, **settings: Any) -> Any:
    return Remote(url=url, model="there", **settings).load(None, STORAGE)


def chat(content: str) -> GenerateRequest:
    return GenerateRequest(messages=[{"role": "user", "content": content}], max_tokens=9, temperature=0.5, seed=3, stop=("end",))


def streamed(engine: Any, content: str) -> list[Any]:
    async def all_of_it() -> list[Any]:
        return [delta async for delta in engine.generate(chat(content))]

    return asyncio.run(asyncio.wait_for(all_of_it(), 20))


def test_streams_and_whole_answers(served: tuple[Endpoint, str], monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, url = served
    monkeypatch.setenv("ENDPOINT_KEY", KEY)
    remote = engine(url, api_key_env="ENDPOINT_KEY")
    deltas = streamed(remote, "hello")
    assert [delta.text for delta in deltas] == ["three tokens in ", "one", ""]
    assert sum(delta.tokens for delta in deltas) == 4 and deltas[-1].prompt_tokens == 5 and deltas[-1].finish_reason == "stop"
    body, key = endpoint.asked[-1]
    assert key == f"Bearer {KEY}"
    assert body == {
        "model": "there",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 1.0,
        "seed": 3,
        "stop": ["end"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    whole = asyncio.run(remote.complete(chat("hello")))
    assert (whole.text, whole.completion_tokens, whole.prompt_tokens, whole.finish_reason) == ("two tokens", 2, 5, "length")
    asyncio.run(engine(url, max_tokens_key="max_completion_tokens").complete(chat("hello")))
    body, key = endpoint.asked[-1]
    assert key is None and body["max_completion_tokens"] == 9 and "max_tokens" not in body


def test_connections_are_taken_again(served: tuple[Endpoint, str]) -> None:
    endpoint, url = served
    remote, before = engine(url), len(endpoint.ports)

    async def several() -> None:
        for _ in range(3):
            assert len([delta async for delta in remote.generate(chat("hello"))]) == 3
            await remote.complete(chat("hello"))

    asyncio.run(asyncio.wait_for(several(), 20))
    assert len(set(endpoint.ports[before:])) == 1


def test_vectors_in_order_and_in_parts(served: tuple[Endpoint, str]) -> None:
    endpoint, url = served
    before = len(endpoint.asked)
    made = engine(url, problem="embedding", max_batch=2).embed(["a", "bbb", "cc"])
    assert np.array_equal(made.vectors[:, 0], [1, 3, 2]) and made.tokens == (6, 0, 3)
    assert len(endpoint.asked) - before == 2


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        ("400", UserError, 400),
        ("422", UserError, 400),
        ("429", Overloaded, 503),
        ("503", Overloaded, 503),
        ("401", UpstreamFailed, 502),
        ("404", UpstreamFailed, 502),
        ("500", UpstreamFailed, 502),
        ("302", UpstreamFailed, 502),
        ("nonsense", UpstreamFailed, 502),
        ("silence", DeadlineExceeded, 504),
    ],
)
def test_refusals_have_their_kinds(
    served: tuple[Endpoint, str], content: str, kind: type[RaybmError], status: int, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setenv("ENDPOINT_KEY", KEY)
    remote = engine(served[1], read_timeout_s=0.3, api_key_env="ENDPOINT_KEY")
    with caplog.at_level(logging.DEBUG):
        for ask in (lambda: streamed(remote, content), lambda: asyncio.run(remote.complete(chat(content)))):
            with pytest.raises(kind, match="there") as caught:
                ask()
            assert type(caught.value) is kind and statuses.status(caught.value).http == status
            assert ("temperature is too hot" in str(caught.value)) == (kind is UserError)
            assert "header" not in str(caught.value)
    assert KEY not in caplog.text and "too hot" not in caplog.text


@pytest.mark.parametrize("content", ["cut", "error"])
def test_a_broken_stream_is_no_end(served: tuple[Endpoint, str], content: str) -> None:
    with pytest.raises(UpstreamFailed, match="broke off") as caught:
        streamed(engine(served[1]), content)
    assert "secret" not in str(caught.value)


def test_nobody_there() -> None:
    with pytest.raises(UpstreamFailed, match="ConnectError"):
        streamed(engine("http://127.0.0.1:1/v1"), "hello")
    with pytest.raises(UpstreamFailed, match="cannot be reached"):
        Remote(url="http://127.0.0.1:1/v1", model="m").check(None, STORAGE, print)


@pytest.mark.parametrize("how", ["aclose", "cancel", "close"])
def test_who_leaves_ends_the_work_there(served: tuple[Endpoint, str], how: str) -> None:
    endpoint, url = served
    endpoint.left.clear()
    remote = engine(url)

    async def scene() -> None:
        deltas = remote.generate(chat("endless"))
        await asyncio.wait_for(anext(deltas), 10)
        if how == "aclose":
            await deltas.aclose()
        elif how == "cancel":
            waiting = asyncio.create_task(_drain(deltas))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        else:
            remote.close()
            with pytest.raises(RaybmError, match="closed"):
                await asyncio.wait_for(_drain(deltas), 10)
        assert await asyncio.to_thread(endpoint.left.wait, 10)

    asyncio.run(scene())


async def _drain(deltas: Any) -> None:
    async for _ in deltas:
        pass


def test_the_endpoint_is_asked_before_a_deployment(served: tuple[Endpoint, str], monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, url = served
    said: list[str] = []
    Remote(url=url, model="there").check(None, STORAGE, said.append)
    assert not said
    with pytest.raises(NotFound, match="There are: there"):
        Remote(url=f"{url}/", model="gone").check(None, STORAGE, said.append)
    monkeypatch.setattr(endpoint, "lists", 404)
    Remote(url=url, model="there").check(None, STORAGE, said.append)
    monkeypatch.setattr(endpoint, "lists", 401)
    with pytest.raises(UserError, match="api_key_env"):
        Remote(url=url, model="there").check(None, STORAGE, said.append)
    nobody = Remote(url=url, model="there", api_key_env="NO_SUCH_KEY")
    nobody.check(None, STORAGE, said.append)
    assert "does not list its models" in said[0] and "NO_SUCH_KEY is not set" in said[1] and len(said) == 2
    with pytest.raises(UserError, match="NO_SUCH_KEY is not set"):
        nobody.load(None, STORAGE)


def test_a_model_is_here_or_there() -> None:
    remote = {"kind": "remote", "url": "https://example.org/v1", "model": "m"}
    assert ServedModel.parse({"name": "m", "engine": remote}).ref is None
    for wrong, what in (
        ({"engine": remote, "ref": "package:x"}, "elsewhere"),
        ({}, "required"),
        ({"engine": {**remote, "url": "https://me:secret@example.org/v1"}}, "url"),
        ({"engine": {**remote, "url": "example.org/v1"}}, "url"),
    ):
        with pytest.raises(SpecError, match=what):
            ServedModel.parse({"name": "m", **wrong})


TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "", "parameters": {"type": "object", "properties": {"n": {"enum": [1, 2]}}}},
}
ASKED: dict[str, dict[str, Any]] = {
    "logprobs": {"logprobs": 2},
    "logprobs of a prompt": {"messages": None, "prompt": "the dog", "logprobs": 2},
    "a schema": {"schema": {"enum": ["fox", "dog"]}},
    "a call": {"tools": (TOOL,), "must_call": True},
    "penalties": {"frequency_penalty": 1.0, "presence_penalty": 0.5},
}


@pytest.mark.parametrize("what", ASKED)
def test_what_else_may_be_asked_for_goes_through(tmp_path: Path, what: str) -> None:
    request = GenerateRequest(messages=[{"role": "user", "content": "the dog"}], max_tokens=60, temperature=0)._replace(**ASKED[what])

    async def deltas(engine: Any) -> list[Any]:
        return [delta async for delta in engine.generate(request)]

    upstream = Transformers(precision="fp32").build(tiny.language_model(tmp_path, 512))
    with closing(upstream), members.remote(upstream) as remote:
        here = Answer.of(asyncio.run(deltas(upstream)))
        for there in (Answer.of(asyncio.run(deltas(remote))), asyncio.run(remote.complete(request))):
            assert _rounded(there, request.prompt is None) == _rounded(here, request.prompt is None)


def _rounded(answer: Answer, with_top: bool) -> Answer:
    """Without what the last bit of a logit decides."""

    def rounded(one: Any) -> Any:
        return replace(one, logprob=round(one.logprob, 3))

    chosen = [rounded(replace(one, top=tuple(map(rounded, one.top)))) for one in answer.logprobs]
    plain = [replace(one, bytes=b"", top=()) for one in chosen]  # a completion has no bytes, and one of several that look alike
    return answer._replace(logprobs=tuple(chosen if with_top else plain))


def test_what_the_endpoint_is_told_of_seeds_and_schemas() -> None:
    spec = Remote.parse({"kind": "remote", "url": "http://127.0.0.1:1/v1", "model": "m"})
    messages = [{"role": "user", "content": "?"}]
    tool, other = ({"type": "function", "function": {"name": name, "parameters": {}}} for name in "fg")
    _, drawn = wire.asked(spec, GenerateRequest(messages=messages, seed=5, drawn=True))
    assert "seed" not in drawn, "the gateway's own is of no use there, and may be too large"
    _, given = wire.asked(spec, GenerateRequest(messages=messages, seed=5, schema={"type": "object"}, strict=("",)))
    assert given["seed"] == 5 and given["response_format"]["json_schema"]["strict"] is True
    _, free = wire.asked(spec, GenerateRequest(messages=messages, schema={"type": "object"}))
    assert free["response_format"] == {"type": "json_object"}
    _, calls = wire.asked(spec, GenerateRequest(messages=messages, tools=[tool, other], strict=("f",)))
    assert calls["tools"] == [tool | {"function": {"name": "f", "parameters": {}, "strict": True}}, other]
    _, loose = wire.asked(spec, GenerateRequest(messages=messages, tools=[tool]))
    assert loose["tools"] == [tool]


def test_a_refusal_is_told() -> None:
    message = {"role": "assistant", "content": None, "refusal": "I will not."}
    answer = wire.whole({"choices": [{"message": message, "finish_reason": "content_filter"}]})
    assert (answer.text, answer.finish_reason) == ("I will not.", "content_filter")
    stream = wire.Stream()
    said = stream.push({"choices": [{"delta": {"refusal": "I will"}}]})
    assert said is not None and said.text == "I will"
    stream.push({"choices": [{"delta": {}, "finish_reason": "content_filter"}]})
    end = stream.end()
    assert end is not None and end.finish_reason == "content_filter"


def test_counts_that_an_endpoint_leaves_out() -> None:
    stream = wire.Stream()
    assert stream.push({"choices": [{"delta": {"content": "a"}, "finish_reason": ""}]}) is not None, "no end"
    assert stream.push({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"completion_tokens": None}}) is None
    end = stream.end()
    assert end is not None and (end.finish_reason, end.tokens, end.prompt_tokens) == ("stop", 0, 0)

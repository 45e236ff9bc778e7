"""What nobody should send: an answer in OpenAI's shape each time, and never a 500."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.fakes import EchoEngine, LengthClassifier, LocalModel, PictureClassifier
from tests.serving.gateway import ask, chat, make_app, refusal

MODELS = {"chat": LocalModel(EchoEngine()), "size": LocalModel(LengthClassifier()), "pictures": LocalModel(PictureClassifier())}
APP = make_app(models=MODELS)
POSTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/score",
    "/v1/rerank",
    "/v1/classify",
    "/v1/images/classify",
    "/tokenize",
    "/detokenize",
)
DEEP = b"[" * 100_000
USER = b'{"model":"chat","messages":[{"role":"user","content":%s}]}'


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b"{}",
        DEEP,
        b'{"model":' + DEEP,
        b'{"model":{"a":1}}',
        b'{"model":"chat"}',
        b'{"model":null}',
        b'{"model":"chat","input":[],"prompt":[],"messages":[],"tokens":[-1],"text_1":"","query":""}',
        b"\x00" * 100,
        b"model=chat&input=x",
    ],
)
def test_bodies_that_are_no_request(path: str, body: bytes) -> None:
    error = refusal(ask(APP, "POST", path, content=body), 400, "invalid_request")
    assert len(error["message"]) < 1000 and error["type"] == "invalid_request_error"


def called(arguments: str) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("messages", []),
        ("messages", "hello"),
        ("messages", [{"role": "robot", "content": "x"}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": []}]),
        ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}]),
        ("messages", [{"role": "assistant"}]),
        ("messages", [called("{")]),
        ("messages", [called("[" * 5000)]),
        ("messages", [called('{"a": "\\ud800"}')]),
        ("messages", [called('{"a": NaN}')]),
        ("messages", [called('{"a":' * 600 + "1" + "}" * 600)]),
        ("max_tokens", -1),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", "10"),
        ("temperature", -0.1),
        ("temperature", [1]),
        ("top_p", 0),
        ("seed", 2**80),
        ("n", 0),
        ("stop", ["x"] * 17),
        ("stream", "yes"),
        ("stream_options", {"unknown": 1}),
        ("logprobs", 5),
        ("top_logprobs", 5),
        ("top_logprobs", 21),
        ("tools", [{"type": "function"}]),
        ("tools", [{"type": "function", "function": {"name": "no spaces please"}}]),
        ("tools", [{"type": "function", "function": {"name": "f"}}] * 2),
        ("tools", [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": []}}),
        ("frequency_penalty", 2.5),
        ("best_of", 2),
        ("audio", {"voice": "alloy"}),
    ],
)
def test_parameters_that_make_no_sense(parameter: str, value: Any) -> None:
    error = refusal(ask(APP, "POST", "/v1/chat/completions", json=chat("x") | {parameter: value}), 400, "invalid_request")
    assert error["param"] in (parameter, None)
    assert "input_type" not in error["message"] and "pydantic" not in error["message"]


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
def test_numbers_that_are_none_within_a_schema(number: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"maximum": "NUMBER"}}}
    body = json.dumps(chat("x", tools=[tool])).replace('"NUMBER"', number)
    error = refusal(ask(APP, "POST", "/v1/chat/completions", content=body), 400, "invalid_request")
    assert error["param"] == "tools" and "numbers should be finite" in error["message"]


def test_texts_that_would_hold_up_a_tokenizer() -> None:
    error = refusal(ask(APP, "POST", "/tokenize", json={"model": "chat", "prompt": "x" * 262_145}), 400, "invalid_request")
    assert error["param"] == "prompt" and "262144" in error["message"]


@pytest.mark.parametrize("number", [b"1e999", b"NaN", b"-Infinity", b"9" * 5000])
def test_numbers_that_are_none(number: bytes) -> None:
    body = b'{"model":"chat","messages":[{"role":"user","content":"x"}],"temperature":' + number + b"}"
    refusal(ask(APP, "POST", "/v1/chat/completions", content=body), 400, "invalid_request")
    row = b'{"model":"size","input":{"text":"x","age":' + number + b"}}"
    response = ask(APP, "POST", "/v1/classify", content=row)
    assert response.status_code in (200, 400), response.text  # an integer of any size is one


@pytest.mark.parametrize("content", [b'"\\ud800"', b'"\xff"', b'"\xed\xa0\x80"'])
def test_text_that_is_no_unicode(content: bytes) -> None:
    refusal(ask(APP, "POST", "/v1/chat/completions", content=USER % content), 400, "invalid_request")


def test_text_that_is_unusual_is_answered() -> None:
    for content in ("\x00", "\u202e\u0000\ufffe", "\r\nSet-Cookie: a=b", "😀" * 1000, "", "   "):
        response = ask(APP, "POST", "/v1/chat/completions", json=chat(content))
        assert response.status_code == 200 and "set-cookie" not in response.headers


@pytest.mark.parametrize("model", ["nope", "", "x" * 100_000, "a\r\nX-Evil: 1", "../../etc/passwd", "\u0000", "chat\n"])
def test_models_that_there_are_not(model: str) -> None:
    for path, more in (("/v1/classify", {"input": "x"}), ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})):
        response = ask(APP, "POST", path, json={"model": model, **more})
        error = refusal(response, 404, "model_not_found")
        assert len(error["message"]) < 1000 and "\n" not in error["message"] and "x-evil" not in response.headers
    refusal(ask(APP, "GET", "/v1/models/%ff%0d%0aX-Evil:1"), 404, "model_not_found")


def test_a_body_of_100_MB_is_not_read_to_its_end() -> None:
    sent = 0

    async def much() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1600):
            sent += 1
            yield b"x" * 65536

    refusal(ask(APP, "POST", "/v1/classify", content=much()), 413, "body_too_large")
    assert sent < 100
    refusal(ask(APP, "POST", "/v1/classify", content=b"{}", headers={"Content-Length": "100000000"}), 413, "body_too_large")


@pytest.mark.parametrize("length", ["-5", "abc", "9" * 5000, "1, 2", "²"])
def test_lengths_that_are_none(length: str) -> None:
    """Servers refuse them before us; nothing breaks where one does not."""

    async def go() -> int:
        statuses: list[int] = []
        body = json.dumps({"model": "size", "input": "x"}).encode()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            statuses.append(message.get("status", 0))

        scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST"}
        headers = [(b"content-length", length.encode("latin-1"))]
        await APP({**scope, "path": "/v1/classify", "query_string": b"", "headers": headers}, receive, send)
        return statuses[0]

    assert asyncio.run(go()) in (200, 400, 413)


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "Basic eDp5", "Bearer \xff\xfe", "Bearer a b c", "x" * 10_000])
def test_keys_that_are_none(header: str) -> None:
    app = make_app(models=MODELS, api_keys=[{"tenant": "acme", "sha256": "0" * 64}])

    async def go() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://raybm") as client:
            return await client.get("/v1/models", headers={"Authorization": header.encode("latin-1")})

    refusal(asyncio.run(go()), 401, "invalid_api_key")


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "data:text/html;base64,PGI+",
        "data:image/png,plain",
        "data:image/png;base64,!!!",
        "data:image/png;base64,",
        "",
    ],
)
def test_pictures_that_are_none(url: str) -> None:
    response = ask(APP, "POST", "/v1/images/classify", json={"model": "pictures", "input": [url]})
    if url != "data:image/png;base64,":  # well-formed, and for the decoder to refuse
        refusal(response, 400, "invalid_request")

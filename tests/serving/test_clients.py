"""Clients that people have, unchanged, over a socket: the official one, LangChain's and curl."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import uvicorn
from pydantic import BaseModel

from tests.fakes import EchoEngine, LengthClassifier, LocalModel, PictureClassifier
from tests.serving.gateway import DIGEST, KEY, make_app

pytestmark = pytest.mark.integration

USER: Any = [{"role": "user", "content": "one two"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": PARAMETERS}}
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


class Empty(BaseModel):
    """Nothing at all."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    models = {"chat": LocalModel(EchoEngine()), "size": LocalModel(LengthClassifier()), "pictures": LocalModel(PictureClassifier())}
    app = make_app(models=models, api_keys=[{"tenant": "acme", "sha256": DIGEST}])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline, "uvicorn did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(api_key=KEY, base_url=f"{url}/v1", max_retries=0)


def test_official_client(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="chat", messages=USER, logprobs=True, top_logprobs=1, n=2)
    content = answer.choices[1].logprobs.content  # type: ignore[union-attr]
    assert [one.token for one in content or ()] == ["one ", "two"] and content and content[0].top_logprobs[0].logprob == -1.0
    stream = client.chat.completions.create(model="chat", messages=USER, logprobs=True, stream=True)
    pieces = [chunk.choices[0] for chunk in stream]
    assert "".join(piece.delta.content or "" for piece in pieces) == "one two"
    assert [one.token for piece in pieces for one in (piece.logprobs and piece.logprobs.content) or ()] == ["one ", "two"]
    legacy = client.completions.create(model="chat", prompt="a bc", logprobs=1).choices[0].logprobs
    assert legacy and legacy.tokens == ["a ", "bc"] and legacy.text_offset == [0, 2] and legacy.top_logprobs == [{"a ": -1.0}, {"bc": -1.0}]
    assert len(client.embeddings.create(model="size", input=["a", "b"]).data) == 2
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(api_key="wrong", base_url=client.base_url, max_retries=0).models.list()


def test_official_client_puts_a_stream_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="chat", messages=USER) as stream:  # type: ignore[arg-type]
        message = stream.get_final_completion().choices[0].message
    assert (message.role, message.content) == ("assistant", "one two")


def test_official_client_calls_tools(client: openai.OpenAI) -> None:
    create: Any = client.chat.completions.create
    answer = create(model="chat", messages=USER, tools=[TOOL], tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments, answer.choices[0].finish_reason) == ("weather", "{}", "tool_calls")
    again = [*USER, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny day"}]
    assert create(model="chat", messages=again, tools=[TOOL]).choices[0].message.content == "sunny day"
    chosen: Any = {"type": "function", "function": {"name": "weather"}}
    with client.chat.completions.stream(model="chat", messages=USER, tools=[TOOL], tool_choice=chosen) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls and final.choices[0].message.tool_calls[0].function.name == "weather"
    assert final.choices[0].finish_reason == "tool_calls"


def test_official_client_parses_what_fits_a_schema(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(model="chat", messages=USER, response_format=Empty)
    assert parsed.choices[0].message.parsed == Empty()
    plain = client.chat.completions.create(model="chat", messages=USER, response_format={"type": "json_object"})
    assert plain.choices[0].message.content == "{}"


def test_official_client_async(url: str) -> None:
    async def go() -> None:
        async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/v1", max_retries=0) as client:
            both = await asyncio.gather(*(client.chat.completions.create(model="chat", messages=USER) for _ in range(2)))
            assert [answer.choices[0].message.content for answer in both] == ["one two"] * 2
            stream = await client.completions.create(model="chat", prompt="x y", stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == "x y"

    asyncio.run(go())


def test_langchain(url: str) -> None:
    from langchain_core.messages import ToolMessage
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    chat = ChatOpenAI(model="chat", api_key=KEY, base_url=f"{url}/v1", max_retries=0)  # type: ignore[call-arg, arg-type]
    assert chat.invoke("one two").content == "one two"
    assert [piece.content for piece in chat.stream("one two") if piece.content] == ["one ", "two"]
    assert [answer.content for answer in chat.batch(["a", "b"])] == ["a", "b"]
    called = chat.bind_tools([TOOL], tool_choice="weather").invoke("how is it?")
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("weather", {})]
    assert chat.invoke([("user", "?"), called, ToolMessage("fine", tool_call_id=called.tool_calls[0]["id"])]).content == "fine"
    assert chat.with_structured_output(Empty).invoke("x") == Empty()
    assert chat.with_structured_output(Empty, method="function_calling").invoke("x") == Empty()
    vectors = OpenAIEmbeddings(model="size", api_key=KEY, base_url=f"{url}/v1", check_embedding_ctx_length=False)  # type: ignore[call-arg, arg-type]
    assert len(vectors.embed_documents(["a", "b"])) == 2


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_curl(url: str) -> None:
    def curl(path: str, body: Any = None, *more: str) -> str:
        sent = [] if body is None else ["-H", "Content-Type: application/json", "-d", "@-"]
        words = ["curl", "-sS", "--max-time", "30", "-H", f"Authorization: Bearer {KEY}", *sent, *more, url + path]
        return subprocess.run(
            words, input=body if isinstance(body, str) else json.dumps(body), capture_output=True, text=True, check=True
        ).stdout

    assert json.loads(curl("/v1/models"))["data"][0]["id"] == "chat"
    streamed = curl("/v1/chat/completions", {"model": "chat", "messages": USER, "stream": True}, "-N")
    assert streamed.endswith("data: [DONE]\n\n") and streamed.count("data: ") == 3
    tokens = json.loads(curl("/tokenize", {"model": "chat", "prompt": "ab", "return_token_strs": True}))
    assert tokens == {"count": 3, "max_model_len": 1000, "tokens": [0, 97, 98], "token_strs": ["<s>", "a", "b"]}
    assert json.loads(curl("/tokenize", {"model": "chat", "messages": USER, "add_special_tokens": False}))["count"] == 7
    assert json.loads(curl("/detokenize", {"model": "chat", "tokens": [97, 98]})) == {"prompt": "ab"}
    picture = f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"
    assert json.loads(curl("/v1/images/classify", {"model": "pictures", "input": [picture]}))["data"][0]["label"] == "cat"
    assert json.loads(curl("/v1/chat/completions", "{"))["error"]["code"] == "invalid_request"
    page = curl("/docs")
    assert "swagger-ui" in page and "https://" not in page
    script = page.split('<script src="')[1].split('"')[0]
    assert len(curl(script)) > 100_000

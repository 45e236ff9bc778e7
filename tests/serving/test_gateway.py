"""The gateway's answers, with models in its own process."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import re
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from ray.exceptions import RayActorError

from raybm.engines.protocol import Delta, ToolCall
from raybm.serving.accesslog import TOGETHER_S
from raybm.serving.adapted import with_adapters
from raybm.serving.logs import ACCESS, log_with_serve
from raybm.serving.wire import answers
from tests.fakes import EchoEngine, LocalModel
from tests.serving.gateway import DIGEST, KEY, ask, chat, chunks, make_app, refusal


def test_chat_and_completion() -> None:
    app = make_app()
    answer = ask(app, "POST", "/v1/chat/completions", json=chat("three little words")).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "three little words"}
    assert answer["choices"][0]["finish_reason"] == "stop" and answer["object"] == "chat.completion"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    answer = ask(app, "POST", "/v1/completions", json={"model": "chat", "prompt": ["a b c"], "max_tokens": 2}).json()
    assert answer["choices"][0]["text"] == "a b" and answer["choices"][0]["finish_reason"] == "length"


def test_content_parts_and_developer_role_reach_the_engine_as_plain_text() -> None:
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]},
    ]
    answer = ask(make_app(), "POST", "/v1/chat/completions", json={"model": "chat", "messages": messages})
    assert answer.json()["choices"][0]["message"]["content"] == "a b"


def test_calls_and_what_they_gave_reach_the_engine_as_templates_want_them() -> None:
    asked: list[Any] = []

    class Listening(EchoEngine):
        async def generate(self, request: Any) -> Any:
            asked.append(request)
            yield Delta("", 1, 1, "tool_calls", calls=(ToolCall(0, "f", "{}"), ToolCall(1, "g", "{}")))

    app, tool = make_app(models={"chat": LocalModel(Listening())}), {"type": "function", "function": {"name": "f"}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "7"}]},
    ]
    body = {"model": "chat", "messages": messages, "tools": [tool, {**tool, "function": {"name": "g"}}]}
    both = ask(app, "POST", "/v1/chat/completions", json=body).json()["choices"][0]["message"]["tool_calls"]
    assert [call["function"]["name"] for call in both] == ["f", "g"] and all(re.fullmatch("[a-z0-9]{9}", call["id"]) for call in both)
    (_, told, given), tools = asked[0].messages, asked[0].tools
    assert told == {"role": "assistant", "content": "", "tool_calls": [{**call, "function": {"name": "f", "arguments": {"a": 1}}}]}
    assert given == {"role": "tool", "content": "7", "tool_call_id": "1", "name": "f"}
    assert [tool["function"]["name"] for tool in tools] == ["f", "g"] and not asked[0].must_call
    for choice, names, must in (("none", [], False), ("required", ["f", "g"], True), (tool, ["f"], True)):
        one = ask(app, "POST", "/v1/chat/completions", json=body | {"tool_choice": choice, "parallel_tool_calls": False, "stream": True})
        assert ([tool["function"]["name"] for tool in asked[-1].tools], asked[-1].must_call) == (names, must)
        assert [call["index"] for call in chunks(one)[0]["choices"][0]["delta"]["tool_calls"]] == [0]


def test_stream_ends_with_usage_and_done() -> None:
    response = ask(make_app(), "POST", "/v1/chat/completions", json=chat("one two", stream=True, stream_options={"include_usage": True}))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert all(answers.ChatChunk.model_validate(chunk) for chunk in chunks(response)[:-1])
    first, second, usage, done = chunks(response)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "one "} and first["usage"] is None
    assert second["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 2
    assert done == "[DONE]"


def test_several_answers_to_one_prompt() -> None:
    class Seeded(EchoEngine):
        async def generate(self, request: Any) -> Any:
            yield Delta("", 1, 3)
            yield Delta(f"seed {request.seed}", 1, 3, "stop")

    app = make_app(models={"chat": LocalModel(Seeded())})
    answer = ask(app, "POST", "/v1/chat/completions", json=chat("x", n=3, seed=2**63 - 2)).json()
    told = [(choice["index"], choice["message"]["content"]) for choice in answer["choices"]]
    assert told == [(0, f"seed {2**63 - 2}"), (1, f"seed {2**63 - 1}"), (2, f"seed {-(2**63)}")]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    *pieces, usage, done = chunks(
        ask(app, "POST", "/v1/chat/completions", json=chat("x", n=2, stream=True, stream_options={"include_usage": True}))
    )
    written = {index: [p["choices"][0] for p in pieces if p["choices"][0]["index"] == index] for index in (0, 1)}
    for choices in written.values():
        assert [choice["delta"].get("content") for choice in choices] == ["", "seed None"] and choices[-1]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == 4 and done == "[DONE]" and len(pieces) == 4


def test_one_of_several_answers_that_fails_ends_the_others() -> None:
    class Half(EchoEngine):
        async def generate(self, request: Any) -> Any:
            self.begun += 1
            number = self.begun
            try:
                yield Delta("a ", 1, 1)
                if number == 2:
                    raise RuntimeError("secret of the house")
                await asyncio.Event().wait()
            finally:
                self.closed += 1

    for stream in (False, True):
        engine = Half()
        response = ask(make_app(models={"chat": LocalModel(engine)}), "POST", "/v1/chat/completions", json=chat("x", n=2, stream=stream))
        last = chunks(response)[-1] if stream else response.json()
        assert last["error"]["code"] == "internal_error" and (engine.begun, engine.closed) == (2, 2)


def test_client_that_leaves_closes_the_generation() -> None:
    engine = EchoEngine()
    app = make_app(models={"chat": LocalModel(engine)})

    async def go() -> None:
        received = asyncio.Event()
        body = json.dumps(chat("!slow", stream=True)).encode()
        inbox = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if inbox:
                return inbox.pop()
            await received.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body":
                received.set()

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/chat/completions",
        }
        async with asyncio.timeout(5):
            await app({**scope, "query_string": b"", "headers": [(b"content-length", str(len(body)).encode())]}, receive, send)

    asyncio.run(go())
    assert (engine.begun, engine.closed) == (1, 1)


def test_embeddings_as_floats_and_base64_agree() -> None:
    app = make_app()
    floats = ask(app, "POST", "/v1/embeddings", json={"model": "size", "input": ["a", "b c"]}).json()
    packed = ask(app, "POST", "/v1/embeddings", json={"model": "size", "input": ["a", "b c"], "encoding_format": "base64"}).json()
    assert floats["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    for one, other in zip(floats["data"], packed["data"], strict=True):
        np.testing.assert_allclose(one["embedding"], np.frombuffer(base64.b64decode(other["embedding"]), "<f4"), rtol=1e-6)


def test_texts_beside_a_text() -> None:
    app, texts = make_app(), ["b", "a", "c"]
    vectors = [
        row["embedding"] for row in ask(app, "POST", "/v1/embeddings", json={"model": "size", "input": ["a", *texts]}).json()["data"]
    ]
    expected = [float(np.dot(vectors[0], vector)) for vector in vectors[1:]]
    score = ask(app, "POST", "/v1/score", json={"model": "size", "text_1": "a", "text_2": texts}).json()
    assert [row["score"] for row in score["data"]] == pytest.approx(expected, abs=1e-5) and score["data"][1]["score"] == pytest.approx(1)
    assert ask(app, "POST", "/v1/score", json={"model": "size", "text_1": "a", "text_2": "b"}).json()["usage"]["prompt_tokens"] == 2
    ranked = ask(app, "POST", "/v1/rerank", json={"model": "size", "query": "a", "documents": texts, "top_n": 2}).json()
    best = sorted(range(3), key=lambda index: -expected[index])[:2]
    assert [row["index"] for row in ranked["results"]] == best and ranked["results"][0]["document"] == {"text": "a"}
    assert ranked["results"][1]["relevance_score"] == pytest.approx(expected[best[1]], abs=1e-5)
    plain = ask(app, "POST", "/v1/rerank", json={"model": "size", "query": "a", "documents": texts, "return_documents": False}).json()
    assert len(plain["results"]) == 3 and "document" not in plain["results"][0]
    for body in ({"query": "a", "documents": []}, {"query": "a", "documents": ["b"], "top_n": 0}, {"documents": ["b"]}):
        refusal(ask(app, "POST", "/v1/rerank", json={"model": "size", **body}), 400, "invalid_request")


def test_classify() -> None:
    answer = ask(make_app(), "POST", "/v1/classify", json={"model": "size", "input": ["hi", "a long sentence"]}).json()
    assert [row["label"] for row in answer["data"]] == ["short", "long"]
    assert answer["data"][0] == {"index": 0, "label": "short", "score": 0.9, "scores": {"short": 0.9, "long": 0.1}}


@pytest.mark.parametrize(("name", "logged"), [("job-7/a=b", "job-7/a=b"), ("a status=200", "-"), ("x" * 129, "-"), (None, "-")])
def test_the_log_names_the_request(caplog: pytest.LogCaptureFixture, name: str | None, logged: str) -> None:
    with caplog.at_level(logging.INFO, "raybm"):
        ask(make_app(), "GET", "/v1/models", headers={} if name is None else {"x-request-id": name})
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("raybm")]
    assert line.endswith(f" request={logged}")


def test_lines_about_requests_come_together_and_not_on_stderr(tmp_path: Path) -> None:
    serves, loggers = logging.getLogger("ray.serve"), [logging.getLogger(name) for name in ("raybm", ACCESS)]
    before = [(logger, logger.level, logger.handlers, logger.propagate) for logger in (serves, *loggers)]
    said, file = io.StringIO(), logging.FileHandler(tmp_path / "log")
    file.setFormatter(logging.Formatter("%(levelname)s %(request_id)s %(message)s", defaults={"request_id": "-"}))
    try:
        serves.handlers = [logging.StreamHandler(said), MemoryHandler(100, target=file)]  # as Serve's
        log_with_serve()

        async def two() -> list[str]:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app()), base_url="http://raybm") as client:
                for path in ("/v1/models", "/v1/models/size"):
                    await client.get(path, headers={"x-request-id": "mine"})
                early = (tmp_path / "log").read_text()
                async with asyncio.timeout(10):
                    while not (late := (tmp_path / "log").read_text()):
                        await asyncio.sleep(TOGETHER_S)
            return [early, *late.splitlines()]

        early, *lines = asyncio.run(two())
        assert early == "" and [line.split(" model=")[0] for line in lines] == ["INFO mine GET /v1/models", "INFO mine GET /v1/models/size"]
        loggers[0].info("something else")
        serves.handlers[1].flush()
        assert (tmp_path / "log").read_text().endswith("INFO - something else\n")
        assert said.getvalue() == "something else\n"
    finally:
        file.close()
        for logger, level, handlers, propagate in before:
            logger.setLevel(level)
            logger.handlers, logger.propagate = handlers, propagate


def test_a_path_forges_no_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "raybm"):
        ask(make_app(), "GET", "/x%0AINFO%20tenant=acme" + "y" * 1000)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("raybm")]
    assert "\n" not in line and line.startswith("GET /x%0AINFO%20tenant%3Dacmeyy") and len(line) < 300


def test_log_under_a_route_prefix_holds_no_prefix(caplog: pytest.LogCaptureFixture) -> None:
    async def go() -> None:
        app = make_app()
        transport = httpx.ASGITransport(app, root_path="/a")
        async with httpx.AsyncClient(transport=transport, base_url="http://raybm") as client:
            assert (await client.get("/a/v1/models")).status_code == 200
            assert (await client.get("/a/health")).status_code == 200
        app.flush()

    with caplog.at_level(logging.INFO, "raybm"):
        asyncio.run(go())
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("raybm")]
    assert line.startswith("GET /v1/models model=- tenant=anonymous status=200")


def test_the_page_of_the_api_needs_no_other_server_and_no_key() -> None:
    async def go() -> None:
        transport = httpx.ASGITransport(make_app(api_keys=[{"tenant": "acme", "sha256": DIGEST}]), root_path="/a")
        async with httpx.AsyncClient(transport=transport, base_url="http://raybm") as client:
            page = (await client.get("/a/docs")).text
            linked = re.findall(r"(?:src|href|url)[=:] ?[\"\'](.*?)[\"\']", page)
            assert any(link.endswith("/swagger-ui-bundle.js") for link in linked) and "/a/openapi.json" in linked
            for link in linked:
                assert link.startswith("/a/") and (await client.get(link)).status_code == 200, link
            document = (await client.get("/a/openapi.json")).json()
            assert document["servers"] == [{"url": "/a"}]
            assert document["paths"]["/tokenize"]["post"]["security"] and "security" not in document["paths"]["/health"]["get"]

    asyncio.run(go())


def test_health_and_ready() -> None:
    async def missing() -> dict[str, str]:
        return {"chat": "UPDATING"}

    app = make_app(missing, api_keys=[{"tenant": "acme", "sha256": DIGEST}])
    assert ask(app, "GET", "/health").status_code == 200
    response = ask(app, "GET", "/ready")
    assert response.status_code == 503 and response.json()["models"] == {"chat": "UPDATING"}
    assert ask(make_app(), "GET", "/ready").json() == {"status": "ready"}

    async def lost() -> dict[str, str]:
        raise RayActorError

    response = ask(make_app(missing=lost), "GET", "/ready")
    assert response.status_code == 503 and "does not answer" in response.text


def test_official_client() -> None:
    async def go() -> None:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(make_app(api_keys=[{"tenant": "acme", "sha256": DIGEST}])))
        async with openai.AsyncOpenAI(api_key=KEY, base_url="http://raybm/v1", http_client=http, max_retries=0) as client:
            assert [model.id async for model in client.models.list()] == ["chat", "size"]
            assert (await client.models.retrieve("chat")).owned_by == "raybm"
            answer = await client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "a b"}], user="me")
            assert answer.choices[0].message.content == "a b"
            again: Any = [{"role": "user", "content": "x"}, answer.choices[0].message, {"role": "user", "content": "y z"}]
            stream = await client.chat.completions.create(model="chat", messages=again, stream=True, stream_options={"include_usage": True})
            events = [event async for event in stream]
            assert "".join(e.choices[0].delta.content or "" for e in events if e.choices) == "y z"
            assert events[-1].usage and events[-1].usage.completion_tokens == 2
            text = await client.completions.create(model="chat", prompt="p q")
            assert text.choices[0].text == "p q"
            vectors = await client.embeddings.create(model="size", input=["a", "b"])
            assert len(vectors.data) == 2 and abs(np.linalg.norm(vectors.data[0].embedding) - 1) < 1e-6
            with pytest.raises(openai.NotFoundError, match="There are: chat, size"):
                await client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])
            with pytest.raises(openai.APIError, match="something broke"):
                broken = await client.chat.completions.create(
                    model="chat", messages=[{"role": "user", "content": "!broken x"}], stream=True
                )
                _ = [event async for event in broken]

    asyncio.run(go())


def test_a_model_through_its_adapters() -> None:
    class Named(EchoEngine):
        async def generate(self, request: Any) -> Any:
            yield Delta(str(request.adapter), 1, 1, "stop")

    models = with_adapters({"chat": LocalModel(Named()), "other": LocalModel(EchoEngine())}, {"chat": ("legal", "medical"), "other": ()})
    app = make_app(models=models)
    assert [model["id"] for model in ask(app, "GET", "/v1/models").json()["data"]] == ["chat", "chat:legal", "chat:medical", "other"]
    for name, said in (("chat", "None"), ("chat:legal", "legal")):
        answer = ask(app, "POST", "/v1/chat/completions", json={**chat("x"), "model": name}).json()
        assert answer["choices"][0]["message"]["content"] == said and answer["model"] == name
        streamed = ask(app, "POST", "/v1/chat/completions", json={**chat("x", stream=True), "model": name})
        assert chunks(streamed)[0]["choices"][0]["delta"]["content"] == said
    refusal(ask(app, "POST", "/v1/chat/completions", json={**chat("x"), "model": "other:legal"}), 404, "model_not_found")

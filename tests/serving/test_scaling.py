"""Replicas come and go with the load, on a real Ray Serve."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from ray import serve

from raybm.serving.app import application
from raybm.spec import ServeSpec
from tests.fakes import EchoEngine
from tests.serving.test_serve import PORT, ask, wait

pytestmark = pytest.mark.integration


@pytest.fixture
def sleeper(ray_session: Any) -> Iterator[str]:
    """A model without a replica, until somebody asks."""
    scale = {"min_replicas": 0, "max_replicas": 2, "upscale_delay_s": 0, "downscale_delay_s": 0, "look_back_s": 2}
    model = {
        "name": "chat",
        "ref": "file:/none",
        "cpus": 0.1,
        "autoscaling": {**scale, "by": {"kind": "tokens_in_flight", "target": 10}},
    }
    spec = ServeSpec.parse({"models": [model], "gateway": {"cpus": 0.1, "request_timeout_s": 60}})
    serve.start("EveryNode", {"host": "127.0.0.1", "port": PORT})
    serve.run(application(spec, {"chat": EchoEngine}), name="sleeper", route_prefix="/sleeper")
    url = f"http://127.0.0.1:{PORT}/sleeper"
    wait(lambda: httpx.get(f"{url}/ready").status_code == 200)
    yield url
    serve.shutdown()


def running() -> int:
    return serve.status().applications["sleeper"].deployments["chat"].replica_states.get("RUNNING", 0)


def test_from_none_to_two_by_tokens_in_flight_and_back(sleeper: str) -> None:
    assert running() == 0
    assert ask(sleeper, "held until there is a replica").status_code == 200
    over = threading.Event()

    def read() -> None:
        body = {"model": "chat", "messages": [{"role": "user", "content": "!slow"}], "stream": True}
        while not over.is_set():
            with suppress(httpx.TransportError), httpx.stream("POST", f"{sleeper}/v1/chat/completions", json=body, timeout=60) as response:
                for _ in response.iter_lines():
                    if over.is_set():
                        return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait(lambda: running() == 2)
    finally:
        over.set()
        reader.join()
    wait(lambda: running() == 0)
    assert ask(sleeper, "and back").status_code == 200

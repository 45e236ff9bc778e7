"""Nothing is lost: answers under load while replicas are killed, come and go, nodes are drained, and new
versions of model and gateway are deployed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray import serve
from ray.util.state import list_actors

from raybm.core.ports import free_ports
from raybm.engines.transformers.spec import Transformers
from raybm.serving.app import application
from raybm.spec import ServeSpec
from tests.engines import tiny
from tests.fakes import LengthClassifier

pytestmark = pytest.mark.integration

OK = ("stream ok", "whole ok", "classify ok")
QUESTIONS: tuple[dict[str, Any], ...] = (
    {"prompt": "the quick brown fox", "temperature": 0},
    {"prompt": "the dog", "temperature": 1.0, "seed": 3},
    {"prompt": "over the lazy", "temperature": 0.8, "top_p": 0.9, "seed": 4},
)


def language_model(folder: Path) -> Any:
    """Notes its process, so that the test can kill it, and takes its time, so that it is in the middle of something."""
    engine: Any = Transformers(precision="fp32").build(folder)
    step = engine.batch.step

    def slow() -> Any:
        time.sleep(0.01)
        return step()

    engine.batch.step = slow
    (folder / f"{os.getpid()}.pid").touch()
    return engine


def processes(folder: Path) -> list[int]:
    alive = []
    for path in folder.glob("*.pid"):
        with suppress(ProcessLookupError):
            os.kill(int(path.stem), 0)
            alive.append(int(path.stem))
    return alive


def wait(condition: Any, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)


class Service:
    def __init__(self, folder: Path) -> None:
        self.folder = tiny.language_model(folder, context=2000)
        (port,) = free_ports(1)
        serve.start("HeadOnly", {"host": "127.0.0.1", "port": port})
        self.url = f"http://127.0.0.1:{port}/faults"
        self.deploy(replicas=1)

    def deploy(self, replicas: int, version: int = 1) -> None:
        """Waits until it runs."""
        scale = {"min_replicas": replicas, "max_replicas": replicas}
        models = [
            {
                "name": "lm",
                "ref": "file:/none",
                "cpus": 0.1,
                "autoscaling": scale,
                "engine": {"kind": "transformers", "batch_wait_ms": version},
            },
            {"name": "size", "ref": "file:/none", "cpus": 0.1},
        ]
        spec = ServeSpec.parse({"models": models, "gateway": {"cpus": 0.1, "request_timeout_s": 60, "max_inputs": version}})
        loaders = {"lm": partial(language_model, self.folder), "size": LengthClassifier}
        serve.run(application(spec, loaders), name="faults", route_prefix="/faults")

    def undisturbed(self) -> list[str]:
        """The answers to QUESTIONS."""
        answers = [httpx.post(f"{self.url}/v1/completions", json=question(place), timeout=60) for place in range(len(QUESTIONS))]
        return [answer.json()["choices"][0]["text"] for answer in answers]


class Load:
    """Clients that ask one after another, in a thread of their own, until they are told to stop. What they get is counted."""

    def __init__(self, url: str, expected: list[str]) -> None:
        self.url, self.expected = url, expected
        self.over = False
        self.got: Counter[str] = Counter()
        self.streaming = False
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run()))

    def __enter__(self) -> Load:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over = True
        self.thread.join(120)

    def wait_for_more(self) -> None:
        """Of each kind two answers, of which one began after this was called."""
        before = self.got.copy()
        wait(lambda: all(self.got[kind] > before[kind] + 1 for kind in OK))

    async def run(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=90) as client:
            await asyncio.gather(*(self.ask(kind, client) for kind in (self.stream, self.whole, self.classify)))

    async def ask(self, kind: Any, client: httpx.AsyncClient) -> None:
        for place in cycle(range(len(QUESTIONS))):
            if self.over:
                return
            try:
                self.got[f"{kind.__name__} {await kind(client, place)}"] += 1
            except httpx.HTTPError as error:
                self.got[f"{kind.__name__} {error!r}"] += 1
            await asyncio.sleep(0.1)  # what starts meanwhile needs the cores

    async def stream(self, client: httpx.AsyncClient, place: int) -> str:
        text, done = "", False
        async with client.stream("POST", "/v1/completions", json=question(place) | {"stream": True}) as response:
            if response.status_code != 200:
                return str(response.status_code)
            async for line in response.aiter_lines():
                done = done or line == "data: [DONE]"
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        return str(event["error"]["code"])
                    text += event["choices"][0]["text"]
                    self.streaming = not event["choices"][0]["finish_reason"]
        return "cut" if not done else "ok" if text == self.expected[place] else "wrong text"

    async def whole(self, client: httpx.AsyncClient, place: int) -> str:
        response = await client.post("/v1/completions", json=question(place))
        if response.status_code != 200:
            return str(response.status_code)
        return "ok" if response.json()["choices"][0]["text"] == self.expected[place] else "wrong text"

    async def classify(self, client: httpx.AsyncClient, place: int) -> str:
        response = await client.post("/v1/classify", json={"model": "size", "input": "short"})
        return "ok" if response.status_code == 200 and response.json()["data"][0]["label"] == "short" else str(response.status_code)


def question(place: int) -> dict[str, Any]:
    return {"model": "lm", "max_tokens": 60, **QUESTIONS[place]}


@pytest.fixture(scope="module")
def service(ray_session: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    yield Service(tmp_path_factory.mktemp("faults"))
    serve.shutdown()


SECOND = """
import signal, sys
from ray._private.node import Node  # `ray start` would not stay on loopback
from ray._private.parameter import RayParams
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
there = RayParams(gcs_address=sys.argv[1], num_cpus=2, node_ip_address="127.0.0.1", min_worker_port=0, max_worker_port=0)
node = Node(there, head=False, shutdown_at_exit=False, spawn_reaper=False)
signal.sigwait([signal.SIGTERM])
node.kill_all_processes(check_alive=False, allow_graceful=True)
"""


@contextmanager
def second_node(address: str) -> Iterator[str]:
    """One more for the session's Ray, on this machine. Its id."""
    known = {node["NodeID"] for node in ray.nodes()}
    process = subprocess.Popen([sys.executable, "-c", SECOND, address], env=os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"})
    try:
        wait(lambda: len(ray.nodes()) > len(known))
        yield next(node["NodeID"] for node in ray.nodes() if node["NodeID"] not in known)
    finally:
        process.terminate()
        process.wait(30)


def drain(node: str, address: str) -> None:
    """As an autoscaler does before it takes a node away."""
    ray_command, reason = Path(sys.executable).with_name("ray"), ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
    command = [ray_command, "drain-node", "--address", address, "--node-id", node, *reason, "--deadline-remaining-seconds", "120"]
    subprocess.run(command, check=True, timeout=60)


def replicas_on(node: str) -> list[str]:
    actors = list_actors(filters=[("node_id", "=", node), ("state", "=", "ALIVE")])
    return [actor.name for actor in actors if actor.class_name.startswith("ServeReplica")]


def test_a_node_that_is_drained_loses_no_answer(service: Service, ray_session: str) -> None:
    with Load(service.url, service.undisturbed()) as load:
        with second_node(ray_session) as node:
            service.deploy(replicas=2, version=2)
            assert replicas_on(node)
            load.wait_for_more()
            drain(node, ray_session)
            wait(lambda: not replicas_on(node), 120)
            load.wait_for_more()
        load.wait_for_more()
    assert set(load.got) == set(OK), load.got


def test_no_answer_is_lost(service: Service) -> None:
    with Load(service.url, service.undisturbed()) as load:
        load.wait_for_more()
        service.deploy(replicas=2)
        first, second = processes(service.folder)
        os.kill(first, signal.SIGKILL)
        load.wait_for_more()
        wait(lambda: load.streaming)
        os.kill(second, signal.SIGKILL)  # before there is another one: what streams now waits for it
        load.wait_for_more()
        service.deploy(replicas=1, version=2)
        load.wait_for_more()
    assert set(load.got) == set(OK), load.got

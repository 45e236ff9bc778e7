"""Endpoints of the benchmarks' own: a Serve with the applications that are compared, and servers that stand beside it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import common
import psutil
import yaml

from raybm.core.ports import free_ports

READY_TIMEOUT_S = 300.0


@contextmanager
def serving(applications: Mapping[str, Callable[[], Any]], cpus: float) -> Iterator[str]:
    """Serve applications, each under /NAME of the URL that is given, behind the proxy that `raybm deploy` takes. An embedded Ray that
    ends with the block."""
    from ray import serve

    from raybm.cluster import connect
    from raybm.serving import ingress
    from raybm.spec.serve import HttpOptions

    (port,) = free_ports(1)
    http = HttpOptions(host="127.0.0.1", port=port)
    with ingress.chosen(http, embedded=True) as entrance, connect(cpus=cpus, say=common.say, variables=entrance.variables):
        serve.start(http_options={"host": http.host, "port": port}, controller_options={"runtime_env": {"env_vars": ingress.PATIENCE}})
        for name, build in applications.items():
            serve.run(build(), name=name, route_prefix=f"/{name}")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def deployed(place: Path, models: Sequence[Mapping[str, Any]], **gateway: Any) -> Iterator[str]:
    """`raybm deploy` of these models; the URL, once it is ready."""
    (port,) = free_ports(1)
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {"import_path": "raybm.serving.app:build", "args": {"storage": str(place), "models": list(models), "gateway": gateway}}
        ],
    }
    file = place / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    with common.started([*common.RAYBM, "deploy", file]) as process:
        wait_for(f"http://127.0.0.1:{port}/ready", process)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def peer(script: str, *arguments: str, **variables: str) -> Iterator[str]:
    """A server of benchmarks/peers/, which takes its port as the first argument and answers GET /ready."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with server([sys.executable, common.ROOT / "benchmarks/peers" / script, str(port), *arguments], f"{url}/ready", **variables):
        yield url


@contextmanager
def server(command: Sequence[str | Path], url: str, **variables: str) -> Iterator[None]:
    """A process that answers at `url` within the block. What it says goes to a file: a pipe that nobody reads stops it when it is full."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(list(map(str, command)), env=common.environment(**variables), text=True, stdout=said, stderr=said)
        try:
            wait_for(url, process)
            yield
        except RuntimeError as error:
            said.seek(0)
            error.add_note(said.read()[-2000:])
            raise
        finally:
            process.terminate()
            try:
                process.wait(common.STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(url: str, process: Any, timeout_s: float = READY_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no answer from {url} (exit code {process.poll()})") from None
            time.sleep(0.1)


def processes(*marks: str) -> list[psutil.Process]:
    """Processes below this one with one of `marks` in their command lines; Ray's have titles, such as ray::ServeReplica:raybm:chat."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ended
            line = " ".join(process.cmdline())
            if any(mark in line for mark in marks):
                found.append(process)
    return found


def cpu_s(found: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in found)

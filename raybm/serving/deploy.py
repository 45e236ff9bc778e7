"""From a serve_configs/ file to an endpoint that answers: everything that can be checked before is checked before."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from raybm.core.errors import DeadlineExceeded, RaybmError, UserError
from raybm.core.spec import load
from raybm.serving import ingress
from raybm.spec.serve import BATCHES_CPUS, GATEWAY_NAME, HttpOptions, ServeConfig, ServedModel

LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLL_S = 0.5
SAY_EVERY_S = 15.0
COLD_START_TIMEOUT_S = 5.0

Say = Callable[[str], None]


class Connection(Protocol):
    @property
    def embedded(self) -> bool: ...
    @property
    def logs(self) -> Path | None: ...


class Connect(Protocol):
    """raybm.cluster.connect, which lies above this package."""

    def __call__(
        self, *, cpus: float, say: Say, gpus: float, address: str | None, variables: Mapping[str, str]
    ) -> AbstractContextManager[Connection]: ...


@dataclass(frozen=True)
class Endpoint:
    url: str
    models: tuple[str, ...]


def deploy(
    path: str | Path,
    *,
    connect: Connect,
    say: Say,
    address: str | None = None,
    block: bool = True,
    on_ready: Callable[[Endpoint], None] | None = None,
    timeout_s: float = 600.0,
) -> None:
    """Deploy a serve_configs/ file and call `on_ready`.

    On a running cluster the endpoint stays when this returns. An embedded Ray ends with this call; `block` keeps it until
    SIGINT or SIGTERM. Raises SpecError, NotFound (a model), UserError (the port), DeadlineExceeded, RaybmError (a replica that
    cannot start).
    """
    import ray

    config = load(ServeConfig, path)
    embedded = (address or os.environ.get("RAY_ADDRESS") or "local") == "local" and not ray.is_initialized()
    if embedded:
        _check_free(config.http_options)  # an embedded Ray's proxy will listen on this machine
    check_models(config, say)
    cpus, gpus = needs(config)
    with (
        ingress.chosen(config.http_options, embedded=embedded) as entrance,
        connect(cpus=cpus, gpus=gpus, say=say, address=address, variables=entrance.variables) as connection,
    ):
        say(f"Ingress: {entrance.proxy}, since {entrance.why}.")
        endpoint = run(config, say, timeout_s, local=connection.embedded)
        say(f"{endpoint.url} answers for {', '.join(endpoint.models)}.")
        if on_ready:
            on_ready(endpoint)
        if block and connection.embedded:
            say(f"Requests are logged in {connection.logs}/serve/*_{GATEWAY_NAME}_*.log. Ctrl-C ends it.")
            wait_for_signal()


def check_models(config: ServeConfig, say: Say) -> None:
    """Fetch every model, or ask for it where it is, so that a missing one is told before anything starts. Raises NotFound, Unsupported,
    StorageError, UpstreamFailed."""
    from raybm.core.storage import open_storage

    for application in config.applications:
        for model in application.args.models:
            say(f"Model {model.name}: {model.ref or model.engine.kind}")
            model.engine.check(model.ref, open_storage(application.args.storage), say)


def needs(config: ServeConfig) -> tuple[float, float]:
    """CPUs and GPUs of all replicas at their most."""
    specs = [application.args for application in config.applications]
    models: list[ServedModel] = [model for spec in specs for model in spec.models if model.engine.WEIGHTS]
    cpus = sum(spec.gateway.cpus * spec.gateway.replicas + BATCHES_CPUS for spec in specs)
    counts = [(model, model.autoscaling.max_replicas + model.engine.prefill_replicas()) for model in models]
    cpus += sum(model.cpus * count for model, count in counts)
    return math.ceil(cpus), sum(model.gpus * count for model, count in counts)


def run(config: ServeConfig, say: Say, timeout_s: float = 600.0, *, local: bool = True) -> Endpoint:
    """Run the applications on the connected Ray and wait until they answer (`local`: on this machine). They end with that Ray.

    Raises UserError (the port, a route), DeadlineExceeded, RaybmError (a replica that cannot start).
    """
    from ray import serve
    from ray.serve.exceptions import RayServeException

    from raybm.serving.app import build

    deadline = time.monotonic() + timeout_s
    http = config.http_options
    _check_port(http)
    if http.host not in LOOPBACK and any(not app.args.gateway.api_keys for app in config.applications):
        say(f"{http.host}:{http.port} can be reached from other machines, and no api_keys are set: everybody may ask.")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    options = http.model_dump(exclude={"proxy"}, exclude_none=True)
    serve.start(config.proxy_location, options, controller_options={"runtime_env": {"env_vars": ingress.PATIENCE}})
    targets = [serve.RunTarget(build(app.args.canonical()), app.name, app.route_prefix) for app in config.applications]
    try:
        serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    except RayServeException as error:  # an application that runs on this cluster already has the route
        raise UserError(
            _error(str(error)), where="applications", remedy="Take another route_prefix, or `serve delete` that one."
        ) from error
    _wait_for_applications({app.name for app in config.applications}, deadline, say)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.host, http.host)  # noqa: S104
    urls = [f"http://{f'[{host}]' if ':' in host else host}:{http.port}{app.route_prefix.rstrip('/')}" for app in config.applications]
    if local:
        for url in urls:
            _wait_for_answer(f"{url}/ready", deadline)
    _say_cold_starts(config, say)
    return Endpoint(urls[0], tuple(model.name for app in config.applications for model in app.args.models))


def _say_cold_starts(config: ServeConfig, say: Say) -> None:
    """How long one replica of each model took to start, by part. Models that sleep have none to ask."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    from raybm.serving import coldstart

    async def ask(model: str, app: str) -> dict[str, float]:  # with Serve's settings for throughput a handle needs an event loop
        parts: dict[str, float] = await serve.get_deployment_handle(model, app).cold_start.remote()
        return parts

    for app in config.applications:
        for model in app.args.models:
            if model.engine.WEIGHTS and model.autoscaling.min_replicas:
                try:
                    asked = asyncio.wait_for(ask(model.name, app.name), COLD_START_TIMEOUT_S)
                    parts = asyncio.run_coroutine_threadsafe(asked, _handles_loop()).result()
                except (TimeoutError, RayError, RayServeException):  # it has gone again; what is told here nobody depends on
                    continue
                say(f"{model.name} started in {coldstart.line(parts)}.")


@cache
def _handles_loop() -> asyncio.AbstractEventLoop:
    """One that does not end: with Serve's settings for throughput a handle, which Serve keeps, listens in the loop it was first used in."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="raybm-handles", daemon=True).start()
    return loop


def _check_port(http: HttpOptions) -> None:
    """Raises UserError when the port is somebody else's. Serve itself would share it without a word (SO_REUSEPORT)."""
    from ray.serve.context import _get_global_client

    if (client := _get_global_client(raise_if_no_controller_running=False)) is not None:
        running = client.http_config
        if (running.host, running.port) != (http.host, http.port):
            where = f"{running.host}:{running.port}"
            remedy = f"Set http_options to that, or shut that Serve down, to use {http.host}:{http.port}."
            raise UserError(f"Serve runs on this cluster already, on {where}.", where="http_options", remedy=remedy)
        return
    _check_free(http)


def _check_free(http: HttpOptions) -> None:
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free; a listening one is not
        try:
            probe.bind((http.host, http.port))
        except OSError as error:
            remedy = "Stop what listens there, or take another port."
            raise UserError(
                f"{http.host}:{http.port} cannot be used: {error.strerror}.", where="http_options.port", remedy=remedy
            ) from None


def _wait_for_applications(names: set[str], deadline: float, say: Say) -> None:
    from ray import serve

    said, said_at = "", 0.0
    while True:
        applications = [app for name, app in serve.status().applications.items() if name in names]
        if len(applications) == len(names) and all(app.status.value == "RUNNING" for app in applications):
            return
        unready = [(name, _error(d.message)) for app in applications for name, d in app.deployments.items() if d.status.value != "HEALTHY"]
        if any(app.status.value == "DEPLOY_FAILED" for app in applications):
            reasons = [f"{name} cannot start: {error}" for name, error in unready if error] or [_error(app.message) for app in applications]
            raise RaybmError("; ".join(reasons))
        text = f"Waiting for {', '.join(f'{name} ({error})' if error else name for name, error in unready) or 'Serve'}."
        now = time.monotonic()
        if now > deadline:
            raise DeadlineExceeded(f"the deployment did not become ready. {text}", remedy="Give it more time, or see Serve's logs.")
        if text != said or now - said_at > SAY_EVERY_S:
            say(text)
            said, said_at = text, now
        time.sleep(POLL_S)


def _error(message: str) -> str:
    """The line that names the error, of a deployment's message, which holds the replica's traceback."""
    lines = [line for line in message.splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]+\.\w+: |\w*(Error|Exception|Exit)\b", line)]
    return re.sub(r"^(raybm|ray\.serve)\.[\w.]+: ", "", (raised or lines or [""])[-1].strip())


def _wait_for_answer(url: str, deadline: float) -> None:
    """Until the proxies know the routes and the gateway says it is ready."""
    what = "nothing"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=10):  # noqa: S310  (an http: URL of ours)
                return
        except urllib.error.HTTPError as error:
            what = f"status {error.code}"
        except OSError as error:
            what = str(error)
        time.sleep(0.1)
    raise DeadlineExceeded(f"{url} does not answer ({what}).", remedy="See Serve's logs.")


def wait_for_signal() -> None:
    """Until SIGINT or SIGTERM. For the main thread."""
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not ended.wait(1.0):  # in steps, so that the main thread gets to run the handler
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

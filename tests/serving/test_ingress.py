"""What is chosen to stand before the gateway, and that it opens nothing to other machines."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from raybm.core.errors import UserError
from raybm.serving import ingress
from raybm.serving.ingress import chosen
from raybm.spec.serve import HttpOptions

OFF = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}


def options(proxy: str, host: str = "127.0.0.1") -> HttpOptions:
    return HttpOptions.parse({"host": host, "proxy": proxy})


def test_haproxy_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with chosen(options("auto"), embedded=True) as entrance:
        ports = {value for name, value in entrance.variables.items() if name.endswith("_PORT")}
        folder = Path(entrance.variables["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
        assert entrance.proxy == "haproxy" and len(ports) == 3 and folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()
    monkeypatch.setattr(ingress, "haproxy", lambda: None)
    with chosen(options("auto"), embedded=True) as entrance:
        assert (entrance.proxy, entrance.variables) == ("python", OFF) and "no HAProxy" in entrance.why
    with pytest.raises(UserError, match="no HAProxy"), chosen(options("haproxy"), embedded=True):
        pass


def test_serves_own_proxy_elsewhere() -> None:
    for http, embedded in ((options("python"), True), (options("auto"), False), (options("auto", "::1"), True)):
        with chosen(http, embedded=embedded) as entrance:
            assert (entrance.proxy, entrance.variables) == ("python", OFF if embedded else {})
    with pytest.raises(UserError, match="cluster"), chosen(options("haproxy"), embedded=False):
        pass


def test_what_is_changed_of_serves_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The wrapper, before a HAProxy that is `true`."""
    monkeypatch.setattr(ingress, "haproxy", lambda: "/usr/bin/true")
    config = tmp_path / "haproxy.cfg"
    with chosen(options("haproxy", "0.0.0.0"), embedded=True) as entrance:
        metrics, stats = (entrance.variables[f"RAY_SERVE_HAPROXY_{name}_PORT"] for name in ("METRICS", "STATS"))
        config.write_text(
            f"defaults\n    option splice-request\n    option splice-response\n    errorfile 503 500.http\n"
            f"frontend prometheus\n    bind :{metrics}\nfrontend http_frontend\n    bind *:8000\nlisten stats\n  bind *:{stats}\n"
        )
        subprocess.run([entrance.variables["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(config)], check=True, env={**os.environ})
    binds = [line.strip() for line in config.read_text().splitlines() if "bind" in line]
    assert binds == [f"bind 127.0.0.1:{metrics}", "bind *:8000", f"bind 127.0.0.1:{stats}"]
    text = config.read_text()
    assert "\n    ".join(["frontend http_frontend", *ingress.FRONTEND, "bind"]) in text
    assert "splice-response" in text and "splice-request" not in text and "errorfile" not in text
    assert all(f"http-error status {status} " in text for status in ingress.ERRORS)

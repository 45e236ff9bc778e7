"""The embedded Ray: private, on loopback, and gone afterwards."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from raybm.cluster import connect, session
from raybm.cluster.environment import environment, token_of
from raybm.core.errors import DeadlineExceeded, UserError


def test_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYBM_A", "1")
    monkeypatch.delenv("RAYBM_B", raising=False)
    with environment({"RAYBM_A": None, "RAYBM_B": "2"}):
        assert "RAYBM_A" not in os.environ and os.environ["RAYBM_B"] == "2"
    assert os.environ["RAYBM_A"] == "1" and "RAYBM_B" not in os.environ


def test_the_local_heads_token_goes_to_this_machine_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token_of("127.0.0.1") == {"RAY_AUTH_MODE": "disabled"}
    (tmp_path / ".raybm/cluster").mkdir(parents=True)
    (tmp_path / ".raybm/cluster/token").write_text("x")
    assert token_of("127.0.0.1")["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / ".raybm/cluster/token")
    assert token_of("ray.example.org") == {"RAY_AUTH_MODE": "disabled"}
    monkeypatch.setenv("RAY_AUTH_MODE", "k8s")
    assert token_of("127.0.0.1") == {}


@pytest.mark.parametrize(("address", "error"), [("http://h:8265", UserError), ("h", UserError), ("127.0.0.1:18699", DeadlineExceeded)])
def test_addresses_that_are_none_are_refused_at_once(address: str, error: type[Exception]) -> None:
    with pytest.raises(error), connect(cpus=1, say=print, address=address):
        pass


def test_dashboards_that_start_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(session, "_is_free", lambda port: True)
    monkeypatch.setattr(session, "free_ports", lambda count: [0] * count)
    with session._dashboard_port() as first, session._dashboard_port() as second, session._dashboard_port() as third:
        assert (first, second, third) == (session.DASHBOARD_PORT, 0, 0)
    with session._dashboard_port() as again:
        assert again == session.DASHBOARD_PORT


def test_a_ray_that_does_not_start_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(**settings: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because some of the raylet failed to startup.")

    monkeypatch.setattr("ray.init", late)
    with pytest.raises(DeadlineExceeded, match="did not start within"), connect(cpus=1, say=print, address="local"):
        pass


EMBEDDED = """
    import contextlib, os, signal, sys
    import psutil, ray
    from raybm.cluster import Ask, check_placement, connect, wait_for_place
    from raybm.core.errors import DeadlineExceeded, PlacementError
    from ray._private.utils import get_num_cpus

    before = dict(os.environ)
    signal.signal(signal.SIGTERM, handler := lambda *_: None)
    said = []
    cpus = get_num_cpus() + 3  # more than there are
    with connect(cpus=cpus, say=said.append) as connection:
        folder = connection.logs.parents[2]
        assert signal.getsignal(signal.SIGTERM) is handler
        assert folder.stat().st_mode & 0o777 == 0o700 and (folder / "token").stat().st_mode & 0o777 == 0o600
        assert os.environ["RAY_AUTH_MODE"] == "token"
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = set()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # one that ends while we look
                listening |= {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, listening
        assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == 0
        with connect(cpus=1, say=said.append) as again:
            assert again.address == connection.address and not again.embedded
        wait_for_place(Ask(2, 1, extra_cpus=cpus - 2), 10, said.append)
        for ask in (Ask(1, cpus + 1), Ask(1, 1, 1)):
            try:
                check_placement(ask)
                sys.exit(f"{ask} was not refused")
            except PlacementError:
                pass
        held = ray.util.placement_group([{"CPU": cpus}])
        held.wait(10)
        try:
            wait_for_place(Ask(1, 1), 0.1, said.append)
            sys.exit("a full cluster had a place")
        except DeadlineExceeded:
            pass
    psutil.wait_procs(family[1:], timeout=10)
    assert not [p for p in family[1:] if p.is_running()] and not folder.exists() and dict(os.environ) == before
    print("|".join(said))
"""


@pytest.mark.integration
def test_embedded_ray(tmp_path: Path) -> None:
    """In a process of its own, because a test session has a Ray already."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    script = [sys.executable, "-c", textwrap.dedent(EMBEDDED)]
    done = subprocess.run(script, env=clean, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "logical CPUs" in done.stdout and "Ray's logs" not in done.stdout
    assert done.stderr == ""

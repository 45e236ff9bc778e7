"""The doctor on machines that lack something."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raybm import doctor, ops


@pytest.fixture(autouse=True)
def plain(tmp_path, monkeypatch):
    """Nothing configured."""
    for name in (
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
        "TORCH_EXTENSIONS_DIR",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def found(name, storage="~/.raybm"):
    (finding,) = [finding for finding in doctor.findings(storage) if finding.name == name]
    return finding


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_every_finding_has_its_own_name_and_what_is_wrong_has_a_remedy(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port()}")
    findings = doctor.findings()
    assert len({finding.name for finding in findings}) == len(findings)
    assert all(finding.remedy for finding in findings if finding.ok is False)
    assert {finding.name for finding in findings} >= {"Python", "torch", "Ray", "g++", "disk", "memory", "CPU cores"}


def test_the_cluster_at_ray_address(monkeypatch):
    assert found("Ray cluster").ok is None and found("Ray dashboard").ok is None
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for refused in (f"http://127.0.0.1:{port}", "auto", "127.0.0.1", f"ray://127.0.0.1:{port}"):
            monkeypatch.setenv("RAY_ADDRESS", refused)
            assert found("Ray cluster").ok is False and "HOST:PORT" in found("Ray cluster").found
        for address, ok in ((f"http://127.0.0.1:{port}", True), (f"127.0.0.1:{port}", False), (f"http://127.0.0.1:{closed_port()}", False)):
            monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
            assert found("Ray dashboard").ok is ok
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port()}")
    assert found("Ray cluster").ok is False
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        assert found("Ray cluster").ok is True


def test_which_token_is_meant(tmp_path, monkeypatch):
    assert found("Ray authentication").ok is None
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert found("Ray authentication").ok is False
    (tmp_path / "token").write_text("secret-token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    finding = found("Ray authentication")
    assert finding.ok is True and "secret-token" not in finding.found


@pytest.mark.parametrize(("mode", "ok"), [("token", None), ("", False)])
def test_ray_ports_on_every_interface(mode, ok):
    code = "import socket, sys; s = socket.create_server(('0.0.0.0', 0)); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    environment = {**os.environ, "RAY_AUTH_MODE": mode}
    with subprocess.Popen(
        [sys.executable, "-c", code, "gcs_server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as fake:
        port = fake.stdout.readline().strip()
        finding = found("Ray's open ports")
        fake.stdin.close()
    assert f"{port} (gcs_server)" in finding.found and "firewall" in finding.remedy
    assert finding.ok is ok or mode == "token"  # another Ray of this machine may be an open one


def test_listeners_of_other_users_are_not_passed_over(monkeypatch):
    class Address:
        ip, port = "0.0.0.0", 6379

    class Listener:
        status, pid, laddr = "LISTEN", None, Address

    monkeypatch.setattr(doctor.psutil, "net_connections", lambda kind: [Listener])
    finding = found("Ray's open ports")
    assert finding.ok is None and "1 listeners of other users were not seen" in finding.found and "root" in finding.remedy


def test_a_local_storage_whatever_the_endpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{closed_port()}")
    for storage in (str(tmp_path / "new"), f"file://{tmp_path}/new"):
        assert found("storage", storage).found == f"{tmp_path}/new can be written"
        assert found("disk", storage).found.endswith(f"at {tmp_path}")
    for wrong in ("gs://bucket/x", "file://relative"):
        finding = found("storage", wrong)
        assert finding.ok is False and finding.remedy


def test_a_storage_where_one_may_not_look(tmp_path, monkeypatch):
    exists = Path.exists

    def refuses(path):
        if path.is_relative_to(tmp_path / "closed"):
            raise PermissionError
        return exists(path)

    monkeypatch.setattr(Path, "exists", refuses)
    assert found("disk", f"{tmp_path}/closed/new").found.endswith(f"at {tmp_path}")


@pytest.mark.parametrize("address", ["http://127.0.0.1:99999", "http://a..b:80", "http://[::1"])
def test_addresses_that_are_none(monkeypatch, address):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    monkeypatch.setenv("RAY_ADDRESS", address.removeprefix("http://"))
    findings = {finding.name: finding for finding in doctor.findings()}
    for name, variable in (("S3", "AWS_ENDPOINT_URL_S3"), ("Ray dashboard", "RAY_API_SERVER_ADDRESS"), ("Ray cluster", "RAY_ADDRESS")):
        finding = findings[name]
        assert finding.ok is False and variable in finding.found and finding.remedy


def test_an_endpoint_that_is_down_without_its_password(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://user:secret@127.0.0.1:{closed_port()}")
    finding = found("S3")
    assert finding.ok is False and "secret" not in finding.found and "AWS_ENDPOINT_URL_S3" in finding.remedy


@pytest.mark.integration
def test_an_s3_storage(s3, monkeypatch):
    monkeypatch.undo()  # the server's address, which `plain` took away
    assert found("storage", f"{s3}/anything").ok is True
    absent = found("storage", "s3://no-such-bucket/x")
    assert absent.ok is False and absent.remedy


# ---- the op


def test_an_op_that_is_not_built(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    finding = found("DeepSpeed CPU op")
    assert finding.ok is False and "python -m raybm.ops" in finding.remedy
    (tmp_path / "extensions" / ops.OP).mkdir(parents=True)
    (tmp_path / "extensions" / ops.OP / "built").touch()
    assert found("DeepSpeed CPU op").ok is True
    assert ops.build_ops() == tmp_path / "extensions"  # at once


def test_building_without_a_compiler_says_so(tmp_path, monkeypatch):
    from raybm.core.errors import NotFound

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match="g\\+\\+"):
        ops.build_ops()


def test_ninja_beside_python_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    environment = ops.environment()
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert environment["DS_ACCELERATOR"] == "cpu"
    assert environment["TORCH_EXTENSIONS_DIR"].startswith(str(tmp_path))


def test_the_ninja_beside_python_comes_before_another(tmp_path, monkeypatch):
    """Two versions in turn would compile the op anew each time."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "ninja").write_text("#!/bin/sh\n")
    (other / "ninja").chmod(0o755)
    monkeypatch.setenv("PATH", str(other))
    assert ops.environment()["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), str(other)]

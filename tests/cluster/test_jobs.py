"""Following a submitted job: what ends it at once, and what does not."""

from __future__ import annotations

import importlib
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from raybm import cluster
from raybm.core.errors import NotFound, RaybmError, UserError

jobs = importlib.import_module("raybm.cluster.jobs")  # the package's own `jobs` is a function
SPEC = "name: tiny\ntask: {kind: causal_lm}\nmodel: {ref: 'package:none'}\ndata: {sources: [{kind: text, path: a.txt}]}\n"


class FakeClient:
    """A job whose log is `log`; every tail but the last breaks off after `cut` characters."""

    log = "one two three"

    def __init__(self, cuts: int = 0) -> None:
        self.cuts, self.status = cuts, JobStatus.RUNNING

    def list_jobs(self) -> list[JobDetails]:
        return [JobDetails(type=JobType.SUBMISSION, submission_id="j", entrypoint="", status=self.status, driver_exit_code=3)]

    def get_job_logs(self, id: str) -> str:
        return self.log

    async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
        if self.cuts:
            self.cuts -= 1
            yield "one "
            raise aiohttp.ClientError("cut")
        yield "one two "
        self.status = JobStatus.FAILED


def follow(monkeypatch: pytest.MonkeyPatch, client: Any, id: str, show: Callable[[str], object]) -> int:
    monkeypatch.setattr(jobs, "_client", lambda address: client)
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    return jobs._follow(jobs._Cluster("http://h:1"), id, show)


def test_a_cut_connection_is_taken_up_where_it_broke_off(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    assert follow(monkeypatch, FakeClient(cuts=2), "j", shown.append) == 3
    assert "".join(shown) == FakeClient.log


def test_a_job_that_the_cluster_has_forgotten_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "RECONNECT_TIMEOUT_S", 1e9)
    with pytest.raises(NotFound, match="knows this job no more"):
        follow(monkeypatch, FakeClient(), "another", print)


def test_a_terminal_that_has_gone_is_no_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(jobs, "RECONNECT_TIMEOUT_S", 1e9)
    with pytest.raises(BrokenPipeError):
        follow(monkeypatch, FakeClient(), "j", gone)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", b"gibberish", b""]
)
def test_what_is_no_dashboard_is_told_as_such(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            connection.recv(10_000)
            connection.sendall(answer)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(NotFound, match="no Ray cluster answers"):
            cluster.jobs(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()


def test_a_silent_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "REQUEST_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(NotFound, match=r"no Ray cluster answers .*timed out"):
        cluster.jobs(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_what_ray_refuses_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(FakeClient):
        def submit_job(self, **job: Any) -> None:
            raise ValueError("the package is too large")

    monkeypatch.setattr(jobs, "_client", lambda address: Refusing())
    with pytest.raises(RaybmError, match="did not take the job: the package is too large"):
        jobs._Cluster("http://h:1").start("j", "true", Path())


def test_a_job_that_would_leave_its_work_in_rays_own_folder_is_not_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def client(address: str) -> Any:
        raise AssertionError("asked for the cluster")

    monkeypatch.setattr(jobs, "_client", client)
    (tmp_path / "job.yaml").write_text(SPEC)
    for storage in ("./out", "out"):
        with pytest.raises(UserError, match="would lie in the folder that Ray unpacks") as caught:
            cluster.submit(tmp_path / "job.yaml", say=print, working_dir=tmp_path, overrides=[f"storage={storage}"])
        assert caught.value.exit_code == 2
    for storage in ("/out", "~/out", "s3://bucket/out"):
        jobs.check_storage(storage)


def test_a_home_is_not_sent_unasked_and_secrets_are_never_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import _get_excludes

    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "me").mkdir()
    for folder in (tmp_path, tmp_path / "me"):
        (folder / "job.yaml").write_text(SPEC)
        monkeypatch.chdir(folder)
        with pytest.raises(UserError, match="--working-dir"):
            cluster.submit(Path("job.yaml"), say=print, address="http://127.0.0.1:1")
    excluded = _get_excludes(tmp_path, jobs.EXCLUDES + jobs.SECRETS)
    for name in (".env", "a/.env.prod", "key.pem", ".ssh/id_rsa", "a/.aws/credentials", ".raybm/cluster/token", "token"):
        assert excluded(tmp_path / name), name
    for name in ("job.yaml", "a/tokenizer.json", "cluster/aws.yaml", "environment.yaml"):
        assert not excluded(tmp_path / name), name

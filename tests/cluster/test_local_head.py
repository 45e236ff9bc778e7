"""cluster/local.sh as a user meets it: one head, started, attacked, killed, used and stopped."""

import csv
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from raybm import cluster
from raybm.core.errors import NotFound, UserError
from raybm.core.ports import free_ports
from raybm.core.registry import Registry
from raybm.core.storage import open_storage
from tests.e2e import job

SCRIPT = Path(__file__).parents[2] / "cluster/local.sh"
RAYBM = Path(sys.executable).with_name("raybm")
SPEC = "name: tiny\ntask: {kind: causal_lm}\nmodel: {ref: 'package:none'}\ndata: {sources: [{kind: text, path: a.txt}]}\n"
JOB = """
import os, shutil, sys
from raybm.cluster import Ask, connect, placement, wait_for_place
from raybm.core.errors import PlacementError

print("arguments", sys.argv[1:], "raybm" if shutil.which("raybm") else "no raybm", os.environ["RAY_AUTH_MODE"])
with connect(cpus=1, say=print) as connection:
    assert not connection.embedded
    placement._addable = lambda: None  # an autoscaler that does not say what it may add, and so is asked
    try:
        wait_for_place(Ask(99, 1), 60, print)
    except PlacementError as error:
        print("refused:", error)
sys.exit(7)
"""


@dataclass(frozen=True)
class Head:
    state: Path
    url: str

    @property
    def folder(self) -> Path:
        return Path((self.state / "folder").read_text().strip())

    def processes(self) -> list[psutil.Process]:
        supervisor = psutil.Process(int((self.state / "pid").read_text()))
        return [supervisor, *supervisor.children(recursive=True)]

    def gcs(self) -> psutil.Process | None:
        return next(iter(self.named("gcs_server")), None)

    def named(self, beginning: str) -> list[psutil.Process]:
        try:
            return [process for process in self.processes() if process.name().startswith(beginning)]
        except psutil.NoSuchProcess:  # one ended while we looked
            return []


def local_sh(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"RAY_enable_autoscaler_v2": "1"}  # as on KubeRay
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=120)


def status_of(url: str, token: str | None) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def until(condition: Callable[[], object], timeout_s: float = 45.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    state, (port, gcs_port) = tmp_path_factory.mktemp("head"), free_ports(2)
    started = local_sh("start", "--port", str(gcs_port), "--dashboard-port", str(port), "--state", str(state))
    try:
        assert started.returncode == 0, started.stderr
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("RAY_")]:
                patch.delenv(name)
            for line in started.stdout.splitlines():
                if line.startswith("export "):
                    patch.setenv(*line.removeprefix("export ").split("=", 1))
            yield Head(state, f"http://127.0.0.1:{port}")
    finally:
        local_sh("stop", "--state", str(state))


@pytest.mark.integration
def test_nobody_gets_in_without_the_token(head: Head) -> None:
    token = head.state / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    jobs = f"{head.url}/api/jobs/"
    assert [status_of(jobs, given) for given in (None, "wrong" * 8, token.read_text())] == [401, 403, 200]
    listening = set()
    for process in head.processes():
        with suppress(psutil.NoSuchProcess):  # one that ends while we look
            listening |= {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening and listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def apart(function: Callable[[Path], None], folder: Path) -> None:
    """In a process of its own: this one may be connected to a Ray with another token, and Ray knows one token per process."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=(folder,), daemon=True)
    process.start()
    process.join(240)
    process.kill()
    process.join()
    assert process.exitcode == 0, "its traceback is in what it wrote"


@pytest.mark.integration
def test_a_job_comes_back_with_its_exit_code_and_log(head: Head, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(SPEC)
    (tmp_path / "job.py").write_text(JOB)
    apart(submitted_twice, tmp_path)
    assert not (tmp_path / "pwned").exists()


def submitted_twice(folder: Path) -> None:
    said: list[str] = []
    shown: list[str] = []

    def submit(follow: bool) -> int:
        trap = f"model.ref=file:$(touch {folder}/pwned); touch {folder}/pwned"
        return cluster.submit(
            folder / "job.yaml",
            say=said.append,
            show=shown.append,
            working_dir=folder,
            overrides=[trap],
            follow=follow,
            command=("python", "job.py"),
        )

    assert submit(follow=False) == 0
    assert submit(follow=True) == 7
    log = "".join(shown)
    assert log.count("arguments ['job.yaml', '--set', 'model.ref=file:$(touch") == 1 and "] raybm token" in log
    assert "refused: resources: the cluster can never place 99 workers" in log
    assert [job.status for job in cluster.jobs()] == ["FAILED"]  # the second call adopted the first one's job
    assert submit(follow=False) == 0
    assert [job.id.endswith("-2") for job in cluster.jobs()] == [True, False]
    assert cluster.cancel(cluster.jobs()[0].id)
    with pytest.raises(NotFound):
        cluster.cancel("nothing")
    with pytest.raises(UserError, match="outside"):
        cluster.submit(folder / "job.yaml", say=said.append, working_dir=Path(__file__).parent)
    wrong = folder / "wrong"
    wrong.write_text("0" * 64)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(wrong)
    with pytest.raises(UserError, match="refuses the token"):
        cluster.jobs()
    with pytest.raises(NotFound):
        cluster.jobs("http://127.0.0.1:18699")


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_whole_sweep_by_rays_own_client(head: Head, tmp_path: Path) -> None:
    """Of a gang of two, which is the winner that is published."""
    sweep = {"space": {"train.lr": [1e-2]}, "sampler": {"kind": "grid"}}
    data, train = {"split": {"validation": 0.2, "test": 0.2}}, {"max_steps": 2, "log_every_steps": 1}
    job.write_spec(tmp_path, str(tmp_path / "store"), name="submitted", data=data, evaluate=None, sweep=sweep, train=train)
    ray = Path(sys.executable).with_name("ray")
    command = [ray, "job", "submit", "--working-dir", str(tmp_path), "--", "raybm", "run", "job.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sweep: the best of 1 points" in done.stdout
    (table,) = (tmp_path / "store" / "runs").glob("*/sweep.csv")
    assert [row["end"] for row in csv.DictReader(table.open(encoding="utf-8"))] == ["finished"]
    assert Registry(open_storage(str(tmp_path / "store"))).verify("submitted", "prod") == []


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_sweep_that_is_submitted(head: Head, tmp_path: Path) -> None:
    sweep = {"space": {"train.lr": [1e-4, 1e-2]}, "sampler": {"kind": "grid"}}
    data = {"split": {"validation": 0.2, "test": 0.2}}
    one = {"resources": {"workers": 1}, "train": {"max_steps": 4, "validate_every_steps": 2, "zero": {"stage": 0}}}
    job.write_spec(tmp_path, str(tmp_path / "store"), name="swept", data=data, sweep=sweep, **one)
    done = subprocess.run([RAYBM, "submit", "job.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Registry(open_storage(str(tmp_path / "store"))).verify("swept", "prod") == []
    (table,) = (tmp_path / "store" / "runs").glob("*/sweep.csv")
    assert [row["end"] for row in csv.DictReader(table.open(encoding="utf-8"))] == ["finished", "finished"]


@pytest.mark.integration
def test_a_program_joins_a_head_that_listens_on_loopback_only(head: Head) -> None:
    """Ray would look for it at the machine's own address, and not stop looking."""
    script = "from raybm.cluster import connect\nwith connect(cpus=1, say=print) as c: print(c.embedded)"
    address = {"RAY_ADDRESS": f"127.0.0.1:{(head.state / 'port').read_text().strip()}"}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | address, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@pytest.mark.integration
def test_a_killed_head_comes_back_and_a_stopped_one_leaves_nothing(head: Head) -> None:
    before = head.gcs()
    assert before is not None
    before.kill()
    until(lambda: (gcs := head.gcs()) is not None and gcs.pid != before.pid)
    until(lambda: local_sh("status", "--state", str(head.state)).returncode == 0)
    until(lambda: head.named("ray::"))  # the raylet's agents, whose environments do not say whose they are
    family, folder = head.processes(), head.folder
    again = local_sh("start", "--state", str(head.state))
    assert again.returncode == 0 and "runs already" in again.stderr
    assert local_sh("stop", "--state", str(head.state)).returncode == 0
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not folder.exists() and local_sh("status", "--state", str(head.state)).returncode == 3


def test_a_relative_state_is_told_as_the_folder_that_it_is(tmp_path: Path) -> None:
    """Whoever is told it (the token's path, for jobs) works elsewhere."""
    done = subprocess.run([SCRIPT, "status", "--state", "in/here"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and f"({tmp_path}/in/here)" in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_are_clean() -> None:
    done = subprocess.run(["shellcheck", *SCRIPT.parent.glob("*.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

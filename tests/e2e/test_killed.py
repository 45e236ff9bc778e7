"""kill -9 of a training worker and of the driver: the run ends with the losses of one that was left alone."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from raybm.cli.driver import drive
from raybm.core.spec import load
from raybm.core.storage import Storage, open_storage
from raybm.spec import JobSpec
from raybm.training import checkpoint
from tests.e2e import job

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]  # three starts of Ray Train and a recovery
STEPS = 100
TRAIN = {"max_steps": STEPS, "validate_every_steps": 20, "checkpoint": {"every_steps": 5}}


def wait_for_commit(storage: Storage, process: subprocess.Popen[str], after: int) -> int:
    """The step of the newest committed checkpoint, as soon as there is one after step `after`."""
    deadline = time.monotonic() + job.DEADLINE_S
    while time.monotonic() < deadline:
        for name in storage.folders("artifacts/train"):
            commits = checkpoint.commits(storage.at(f"artifacts/train/{name}"))
            if commits and commits[-1].step > after:
                return commits[-1].step
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise TimeoutError(f"no checkpoint was committed after step {after}")


def ranks_of(driver: int) -> list[psutil.Process]:
    """The training workers among a driver's descendants."""
    return [p for p in psutil.Process(driver).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]


def test_killed_worker_then_killed_driver(ray_session: str, tmp_path: Path) -> None:
    """One run alone; one whose worker is killed and, when it has recovered, its driver."""
    storages, specs = {}, {}
    for name in ("alone", "killed"):
        (tmp_path / name).mkdir()
        storages[name] = open_storage(str(tmp_path / name / "store"))
        specs[name] = job.write_spec(tmp_path / name, str(tmp_path / name / "store"), train=TRAIN)
    drive(load(JobSpec, specs["alone"]), None)
    expected = job.losses(storages["alone"])
    assert sorted(expected) == list(range(1, STEPS + 1))

    process = job.start(specs["killed"])
    first = wait_for_commit(storages["killed"], process, after=0)
    assert first < STEPS // 2
    ranks_of(process.pid)[-1].kill()
    wait_for_commit(storages["killed"], process, after=STEPS // 2)
    left = ranks_of(process.pid)
    process.send_signal(signal.SIGKILL)
    for rank in left:  # they would live on for some seconds, and this job's last fifty steps take one
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.kill()
    process.communicate(timeout=60)
    before = job.losses(storages["killed"])
    assert before == pytest.approx({step: expected[step] for step in before}, abs=1e-4)

    code, output = job.finish(job.start(specs["killed"]))
    assert code == 0, output
    assert "prepare: done already" in output
    after = job.losses(storages["killed"])
    assert min(after) > STEPS // 2  # not from the beginning
    assert after == pytest.approx({step: expected[step] for step in after}, abs=1e-4)
    final = {name: job.train_metrics(storage)["validation"]["loss"] for name, storage in storages.items()}
    assert final["killed"] == pytest.approx(final["alone"], abs=1e-4)

"""kill -9 of a training worker and of the driver: the run ends with the losses of one that was left alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
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
STEPS = 60
TRAIN = {"max_steps": STEPS, "validate_every_steps": 20, "checkpoint": {"every_steps": 5}}
WORKER_DIES, DRIVER_DIES = 20, 40  # steps
HOLD = """
import os, pathlib, re, time

def replace(source, target, really=os.replace, **more):
    really(source, target, **more)
    step = re.search(r"committed/0*([0-9]+)[.]json$", str(target))
    while step and (pathlib.Path(__file__).parent / f"hold-{step[1]}").exists():
        time.sleep(0.02)

os.replace = replace
"""
"""A sitecustomize.py: rank 0 goes no further than the commit of step N while the file hold-N lies beside."""


def wait_for_commit(storage: Storage, process: subprocess.Popen[str], step: int) -> None:
    deadline = time.monotonic() + job.DEADLINE_S
    while time.monotonic() < deadline:
        for name in storage.folders("artifacts/train"):
            if step in [commit.step for commit in checkpoint.commits(storage.at(f"artifacts/train/{name}"))]:
                return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise TimeoutError(f"step {step} was not committed")


def ranks_of(driver: int) -> list[psutil.Process]:
    """The training workers among a driver's descendants."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ends while we look
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


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

    (tmp_path / "sitecustomize.py").write_text(HOLD)
    holds = {step: tmp_path / f"hold-{step}" for step in (WORKER_DIES, DRIVER_DIES)}
    for hold in holds.values():
        hold.touch()
    with job.start(specs["killed"], {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}) as process:
        wait_for_commit(storages["killed"], process, WORKER_DIES)
        ranks_of(process.pid)[-1].kill()
        holds[WORKER_DIES].unlink()
        wait_for_commit(storages["killed"], process, DRIVER_DIES)
        left = ranks_of(process.pid)
        process.send_signal(signal.SIGKILL)
        for rank in left:  # they would live on for some seconds
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.kill()
        holds[DRIVER_DIES].unlink()
        process.communicate(timeout=60)
    before = job.losses(storages["killed"])
    assert before == pytest.approx({step: expected[step] for step in before}, abs=1e-4)

    with job.start(specs["killed"]) as process:
        code, output = job.finish(process)
    assert code == 0, output
    assert "prepare: done already" in output
    after = job.losses(storages["killed"])
    assert min(after) == DRIVER_DIES + 1  # not from the beginning
    assert after == pytest.approx({step: expected[step] for step in after}, abs=1e-4)
    final = {name: job.train_metrics(storage)["validation"]["loss"] for name, storage in storages.items()}
    assert final["killed"] == pytest.approx(final["alone"], abs=1e-4)

"""kill -9 of a training worker and of the driver: the run ends with the losses of one that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from raybm.core.storage import Storage, open_storage
from raybm.training import checkpoint
from tests.e2e import job

pytestmark = pytest.mark.integration
RAYBM = [sys.executable, "-m", "raybm.cli"]
DEADLINE_S = 240.0
STEPS = 40
TRAIN = {"max_steps": STEPS, "validate_every_steps": 10, "checkpoint": {"every_steps": 5}}


def start(spec: Path) -> subprocess.Popen[str]:
    """`raybm run` on an embedded Ray of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen([*RAYBM, "run", str(spec)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output
    return output


def wait_for_commit(storage: Storage, process: subprocess.Popen[str]) -> int:
    """Returns the step of the first committed checkpoint, as soon as there is one."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for name in storage.folders("artifacts/train"):
            if commits := checkpoint.commits(storage.at(f"artifacts/train/{name}")):
                return commits[-1].step
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise TimeoutError("no checkpoint was committed")


def ranks_of(driver: int) -> list[psutil.Process]:
    """The training workers among a driver's descendants."""
    return [p for p in psutil.Process(driver).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]


def test_killed_worker_and_killed_driver(tmp_path: Path) -> None:
    storages = {}
    for name in ("alone", "worker", "driver"):
        (tmp_path / name).mkdir()
        storages[name] = open_storage(str(tmp_path / name / "store"))
    specs = {name: job.write_spec(tmp_path / name, str(tmp_path / name / "store"), train=TRAIN) for name in storages}

    finish(start(specs["alone"]))
    expected = job.losses(storages["alone"])
    assert sorted(expected) == list(range(1, STEPS + 1))

    process = start(specs["worker"])
    assert wait_for_commit(storages["worker"], process) < STEPS
    ranks_of(process.pid)[-1].kill()
    finish(process)
    assert job.losses(storages["worker"]) == pytest.approx(expected, abs=1e-4)

    process = start(specs["driver"])
    assert wait_for_commit(storages["driver"], process) < STEPS
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    output = finish(start(specs["driver"]))
    assert "prepare: done already" in output
    resumed = job.losses(storages["driver"])
    assert min(resumed) > 1  # not from the beginning
    assert resumed == pytest.approx({step: expected[step] for step in resumed}, abs=1e-4)

    final = {name: job.train_metrics(storage)["validation"]["loss"] for name, storage in storages.items()}
    assert final["worker"] == pytest.approx(final["alone"], abs=1e-4)
    assert final["driver"] == pytest.approx(final["alone"], abs=1e-4)

"""A sweep whose driver or cluster is killed goes on where it was when the same command is given again."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from raybm.core.events import read_events
from tests.e2e import job

pytestmark = pytest.mark.integration
DEADLINE_S = 120.0


def trials(store: Path) -> dict[str, dict[str, Any]]:
    """By name, as they stand in the storage."""
    found = {}
    for path in store.glob("sweeps/*/?????-?.json"):
        found[path.name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def over(store: Path) -> dict[str, dict[str, Any]]:
    return {name: trial for name, trial in trials(store).items() if trial["end"] is not None}


def wait_for(count: int, store: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while len(over(store)) < count:
        assert time.monotonic() < deadline, f"{count} trials were not over in time"
        time.sleep(0.2)


def wait_for_checkpoint(store: Path) -> None:
    """Until a trial that is not over has trained past a validation, and so past a checkpoint."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        validations = [path.read_text(encoding="utf-8").count('"kind": "validate"') for path in store.glob("runs/*/trials/*/metrics.jsonl")]
        if any(1 < count < 5 for count in validations):  # of six
            return
        assert time.monotonic() < deadline, "no trial came to its second validation in time"
        time.sleep(0.02)


def resumed(store: Path) -> list[int]:
    """Steps from which trials went on."""
    events = [event for path in store.glob("runs/*/trials/*/metrics.jsonl") for event in read_events(path)]
    return [event["step"] for event in events if event["kind"] == "resume"]


def test_what_is_finished_stays_and_what_runs_goes_on(tmp_path: Path) -> None:
    """The driver is killed, then the head of the sweep that goes on."""
    store = tmp_path / "store"
    sweep = {"space": {"train.lr": {"loguniform": [1e-4, 1e-2]}}, "sampler": {"kind": "random"}, "budget": {"trials": 6}, "concurrent": 1}
    train = {"max_steps": 60, "validate_every_steps": 10, "zero": {"stage": 0}}
    spec = job.write_spec(tmp_path, str(store), resources={"workers": 1}, train=train, sweep=sweep, evaluate=None, publish=None)
    with job.start(spec) as process:
        wait_for(1, store)
        wait_for_checkpoint(store)
        process.kill()
    first = over(store)
    assert not resumed(store)
    with job.start(spec, {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}) as process:
        wait_for(len(first) + 1, store)
        children = psutil.Process(process.pid).children(recursive=True)
        next(child for child in children if child.name() == "gcs_server").kill()
        code, output = job.finish(process)
        assert code != 0 and "GCS" in output
    second = over(store)
    assert 1 <= len(first) < len(second) < 6
    assert resumed(store) and min(resumed(store)) >= 10, "from its checkpoint"
    with job.start(spec) as process:
        code, output = job.finish(process)
    assert code == 0, output
    after = trials(store)
    assert len(after) == 6 and all(trial["end"] == "finished" for trial in after.values())
    assert {name: after[name] for name in second} == second and {name: second[name] for name in first} == first
    assert f"sweep: {len(second)} points are done already" in output
    newest = max((store / "runs").glob("*/sweep.csv"), key=lambda path: path.stat().st_mtime)
    assert len(list(csv.DictReader(newest.open(encoding="utf-8")))) == 6

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from raybm import cleaning
from raybm.core.artifact import Artifact, Record
from raybm.core.lease import KEY, Lease
from raybm.core.registry import Registry
from raybm.core.storage import Storage, open_storage

LONG_AGO = time.time() - 30 * cleaning.DAY_S


@pytest.fixture
def root(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "storage"))


def age(root: Storage, prefix: str = "") -> None:
    """Everything below was written and read a month ago."""
    folder = root.local(prefix)
    assert folder is not None
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (LONG_AGO, LONG_AGO))


def artifact(root: Storage, stage: str, key: str, finished: bool = True, **inputs: str) -> None:
    made = Artifact(root.at(f"artifacts/{stage}/{key}"), stage, key)
    made.storage.write("model/weights", b"x" * 1000)
    if finished:
        made.commit(
            Record(stage=stage, key=key, inputs=inputs, view={}, code="", versions={}, metrics={}, started="2026-01-01T00:00:00", seconds=1)
        )


def run(root: Storage, name: str, state: str, seen: float, **artifacts: str) -> None:
    fields: dict[str, Any] = {"run": name, "job": "j", "state": state, "started": seen, "heartbeat": seen, "host": "h", "pid": 1}
    root.write(f"runs/{name}/state.json", json.dumps(fields | {"artifacts": artifacts}).encode())


def names(root: Storage, cache: Path, keep_days: float = 7.0) -> set[str]:
    return {item.key or Path(item.path).name for item in cleaning.removable(root, keep_days, cache)}


def test_old_runs_go_with_the_artifacts_that_only_they_refer_to(root: Storage, tmp_path: Path) -> None:
    artifact(root, "prepare", "shared")
    artifact(root, "train", "old", prepare="shared")
    artifact(root, "train", "young", prepare="shared")
    run(root, "run-old", "succeeded", LONG_AGO, prepare="shared", train="old")
    run(root, "run-lost", "running", LONG_AGO, train="old")
    run(root, "run-young", "succeeded", time.time(), train="young")
    age(root)
    found = cleaning.removable(root, cache=tmp_path / "cache")
    assert {item.key for item in found} == {"artifacts/train/old", "runs/run-old", "runs/run-lost"}, "shared is an input of a kept one"
    item = next(item for item in found if item.key == "artifacts/train/old")
    assert item.path.endswith("storage/artifacts/train/old") and item.bytes > 1000 and "30 days old" in item.why

    cleaning.remove(root, found)
    assert root.folders("artifacts/train") == ["young"] and root.folders("runs") == ["run-young"]
    assert names(root, tmp_path / "cache") == set()


def test_what_a_running_run_needs_stays_even_with_no_days(root: Storage, tmp_path: Path) -> None:
    artifact(root, "prepare", "a")
    artifact(root, "train", "b", prepare="a")
    artifact(root, "evaluate", "c", train="b", prepare="a")
    run(root, "now", "running", time.time(), train="b")
    age(root, "artifacts")
    assert names(root, tmp_path / "cache", keep_days=0) == {"artifacts/evaluate/c"}


def test_what_is_young_or_being_made_stays(root: Storage, tmp_path: Path) -> None:
    for key in ("resumable", "abandoned", "dead", "leased"):
        artifact(root, "train", key, finished=False)
    artifact(root, "train", "done")
    for key in ("abandoned", "dead", "leased", "done"):
        age(root, f"artifacts/train/{key}")
    dead = {"holder": "x", "host": "elsewhere", "pid": 1, "time": LONG_AGO}
    root.write(f"artifacts/train/dead/{KEY}", json.dumps(dead).encode())
    age(root, "artifacts/train/dead")
    with Lease(root.at("artifacts/train/leased"), "me", 1, print, print):
        age(root, "artifacts/train/leased")
        assert names(root, tmp_path / "cache", keep_days=0) == {f"artifacts/train/{key}" for key in ("abandoned", "dead", "done")}


def test_an_artifact_that_a_run_takes_up_meanwhile_is_not_removed(root: Storage, tmp_path: Path) -> None:
    artifact(root, "prepare", "a")
    artifact(root, "train", "b", prepare="a")
    age(root)
    found = cleaning.removable(root, cache=tmp_path / "cache")
    assert len(found) == 2
    run(root, "now", "running", time.time(), prepare="a")
    cleaning.remove(root, found)
    assert root.keys("artifacts") == ["artifacts/prepare/a/model/weights", "artifacts/prepare/a/record.json"]


def test_what_the_trials_of_a_running_sweep_have_trained_stays(root: Storage, tmp_path: Path) -> None:
    for key in ("before", "trial"):
        artifact(root, "train", key)
    age(root, "artifacts/train/before")
    found = cleaning.removable(root, 0, tmp_path / "cache")
    run(root, "run-now", "running", time.time() - 30)
    assert names(root, tmp_path / "cache", keep_days=0) == {"artifacts/train/before", "artifacts/train/trial"}, "it does not search"
    root.write("runs/run-now/sweep.json", b'{"storage": "sweeps/s"}')
    assert names(root, tmp_path / "cache", keep_days=0) == {"artifacts/train/before"}
    cleaning.remove(root, found)
    assert root.folders("artifacts/train") == ["trial"], "nor does what was found before it began"


def test_old_sweeps_go_unless_a_kept_run_looks_at_them(root: Storage, tmp_path: Path) -> None:
    for name in ("old", "running"):
        root.write(f"sweeps/{name}/00001-0.json", b"{}")
    age(root)
    run(root, "run-now", "running", time.time())
    root.write("runs/run-now/sweep.json", b'{"storage": "sweeps/running"}')
    assert {item.key for item in cleaning.removable(root, 0, tmp_path)} == {"sweeps/old"}
    root.write("sweeps/old/00002-0.json", b"{}")
    assert not cleaning.removable(root, 7, tmp_path)


def test_a_sweep_that_a_run_takes_up_meanwhile_is_not_removed(root: Storage, tmp_path: Path) -> None:
    for name in ("old", "taken"):
        root.write(f"sweeps/{name}/00001-0.json", b"{}")
    age(root)
    found = cleaning.removable(root, 0, tmp_path)
    assert {item.key for item in found} == {"sweeps/old", "sweeps/taken"}
    run(root, "run-now", "running", time.time())
    root.write("runs/run-now/sweep.json", b'{"storage": "sweeps/taken"}')
    cleaning.remove(root, found)
    assert root.folders("sweeps") == ["taken"]


def test_versions_stay_and_publications_that_were_cut_off_go(root: Storage, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("w")
    registry = Registry(root)
    for _ in range(2):
        registry.publish("chat", model, {})
    registry.promote("chat", "prod", 1, None)
    root.write("registry/chat/versions/3/weights", b"half")
    age(root)
    found = cleaning.removable(root, keep_days=0, cache=tmp_path / "cache")
    assert [item.key for item in found] == ["registry/chat/versions/3"]
    cleaning.remove(root, found)
    assert registry.versions("chat") == [1, 2] and registry.verify("chat", "prod") == []


def test_caches_that_were_not_read_for_long_go(root: Storage, tmp_path: Path) -> None:
    artifact(root, "prepare", "abc")
    run(root, "young", "succeeded", time.time(), prepare="abc")
    cache = tmp_path / "cache"
    for name in ("models/old", "models/new", "registry/d1/chat/1", "artifacts/gone", "artifacts/abc"):
        (cache / name).mkdir(parents=True)
        (cache / name / "weights").write_bytes(b"x" * 10)
    (cache / "rows").mkdir()
    for name in ("abc-train.arrow", "gone-train.arrow"):
        (cache / "rows" / name).write_bytes(b"x")
    age(open_storage(str(cache)))
    os.utime(cache / "models/new/weights")
    found = cleaning.removable(root, cache=cache)
    assert {Path(item.path).relative_to(cache).as_posix() for item in found} == {
        "models/old",
        "registry/d1/chat/1",
        "artifacts/gone",
        "rows/gone-train.arrow",
    }
    cleaning.remove(root, found)
    assert not (cache / "models/old").exists() and (cache / "models/new/weights").exists()
    assert cleaning.removable(root, cache=cache) == []


@pytest.mark.integration
def test_on_s3(s3: str, tmp_path: Path) -> None:
    root = open_storage(f"{s3}/{uuid.uuid4().hex}")
    assert cleaning.removable(root, 0, tmp_path) == []
    artifact(root, "train", "done")
    artifact(root, "train", "partial", finished=False)
    run(root, "old", "failed", LONG_AGO, train="done")
    assert {item.key for item in cleaning.removable(root, 7, tmp_path)} == {"runs/old"}
    found = cleaning.removable(root, 0, tmp_path)
    assert {item.key for item in found} == {"artifacts/train/done", "runs/old"}, "what is not finished rests for an hour first"
    cleaning.remove(root, found)
    assert root.keys() == ["artifacts/train/partial/model/weights"]

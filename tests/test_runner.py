"""The runner with fake stages: what is done is not done again, what fails leaves no record."""

from __future__ import annotations

import _thread
import errno
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from raybm import runner
from raybm.cli import jobs
from raybm.core import lease, runs
from raybm.core.artifact import Artifact
from raybm.core.context import Context
from raybm.core.errors import Cancelled, Conflict, RaybmError, StorageError
from raybm.core.events import Events
from raybm.core.registry import Registry
from raybm.core.runs import Run, states
from raybm.core.spec import Spec
from raybm.core.storage import open_storage
from raybm.models.spec import ModelInput, ModelSpec
from raybm.spec import JobSpec
from raybm.spec.job import DataSpec
from raybm.spec.train import TrainSpec

JOB: dict[str, Any] = {
    "name": "fake",
    "task": {"kind": "text_classification"},
    "model": {"ref": "package:nothing"},
    "data": {"sources": [{"kind": "jsonl", "path": "x.jsonl"}]},
    "evaluate": None,
}


class FakeStage:
    CODE = ("core/errors.py",)
    ON_RAY = True
    outside = None

    def __init__(self, name: str, inputs: tuple[str, ...], view: type[Spec]) -> None:
        self.NAME, self.INPUTS, self.View = name, inputs, view
        self.runs = 0
        self.fails = False
        self.during: Callable[[Artifact], None] = lambda out: None

    def run(self, view: Any, inputs: Mapping[str, Artifact], out: Artifact, context: Context) -> dict[str, Any]:
        self.runs += 1
        out.storage.write("output", b"partial" if self.fails else b"whole")
        self.during(out)
        if self.fails:
            raise RuntimeError("broken")
        return {"from": sorted(inputs)}


class PrepareView(Spec):
    seed: int
    data: DataSpec
    model: ModelInput


class TrainView(Spec):
    train: TrainSpec
    model: ModelSpec
    workers: int


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeStage, FakeStage]:
    prepare, train = FakeStage("prepare", (), PrepareView), FakeStage("train", ("prepare",), TrainView)
    monkeypatch.setattr(runner, "STAGES", (prepare, train))
    return prepare, train


class Walk:
    """Runs jobs in one storage and counts how often Ray was brought up."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.storage, self.ray_starts = folder, open_storage(str(folder)), 0
        self.lines: list[str] = []
        self.on_ray_end: Callable[[], None] = lambda: None

    def __call__(self, **changes: Any) -> Any:
        job = JobSpec.parse(JOB | {"storage": str(self.folder)} | changes)
        run = Run(self.storage, job.name, job.canonical(), on_cancel=_thread.interrupt_main)
        context = Context(job.canonical(), job.name, self.storage, job.resources, run.folder, Events(run.folder), self.lines.append)
        try:
            records = runner.run(job, run, context, self.on_ray)
        except (RuntimeError, RaybmError):
            run.close(state="failed")
            raise
        run.close(state="succeeded")
        return records

    @contextmanager
    def on_ray(self) -> Iterator[None]:
        self.ray_starts += 1
        try:
            yield
        finally:
            self.on_ray_end()


def test_what_is_done_is_not_done_again(stages: tuple[FakeStage, FakeStage], tmp_path: Path) -> None:
    prepare, train = stages
    walk = Walk(tmp_path)
    records = walk()
    assert records["train"].metrics == {"from": ["prepare"]}
    assert records["train"].inputs == {"prepare": records["prepare"].key}
    assert walk() == records
    assert (prepare.runs, train.runs, walk.ray_starts) == (1, 1, 1)  # the second time without Ray
    assert [state.state for state in states(walk.storage)] == ["succeeded", "succeeded"]


def test_a_changed_learning_rate_redoes_training_and_not_data(stages: tuple[FakeStage, FakeStage], tmp_path: Path) -> None:
    prepare, train = stages
    walk = Walk(tmp_path)
    walk()
    walk(train={"lr": 1e-3})
    assert (prepare.runs, train.runs) == (1, 2)
    walk(seed=5)
    assert (prepare.runs, train.runs) == (2, 3)
    walk(name="other", resources={"cpus_per_worker": 2})  # what does not change the result is not part of the key
    assert (prepare.runs, train.runs) == (2, 3)
    walk(resources={"workers": 4})
    assert (prepare.runs, train.runs) == (2, 4)
    walk(model=JOB["model"] | {"dropout": 0.2})  # rows are what they were
    assert (prepare.runs, train.runs) == (2, 5)
    walk(model=JOB["model"] | {"max_length": 8})
    assert (prepare.runs, train.runs) == (3, 6)


def test_changed_code_makes_a_new_artifact(stages: tuple[FakeStage, FakeStage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(tmp_path)
    walk()
    monkeypatch.setattr(runner, "code_digest", lambda parts: "upgraded")
    walk()
    assert stages[0].runs == 2


def test_a_failed_stage_leaves_no_record(stages: tuple[FakeStage, FakeStage], tmp_path: Path) -> None:
    prepare, train = stages
    walk = Walk(tmp_path)
    train.fails = True
    with pytest.raises(RuntimeError):
        walk()
    assert states(walk.storage)[0].state == "failed"
    assert states(walk.storage)[0].stage == "train"
    train.fails = False
    walk()
    assert (prepare.runs, train.runs) == (1, 2)


def wait_to_be_stopped() -> NoReturn:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        time.sleep(0.01)
    raise AssertionError("nobody stopped the run")


def test_a_cancelled_run_is_interrupted(stages: tuple[FakeStage, FakeStage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "HEARTBEAT_S", 0.02)
    walk = Walk(tmp_path)

    def cancel(out: Artifact) -> None:
        runs.cancel(walk.storage, states(walk.storage)[0].run)
        wait_to_be_stopped()

    stages[1].during = cancel
    with pytest.raises(Cancelled):
        walk()
    assert stages[0].runs == 1


def test_a_run_whose_lease_was_taken_over_stops(
    stages: tuple[FakeStage, FakeStage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.02)
    walk = Walk(tmp_path)

    def take_over(out: Artifact) -> None:
        out.storage.write(lease.KEY, b'{"holder": "another"}')
        wait_to_be_stopped()

    stages[1].during = take_over
    with pytest.raises(Conflict, match="taken over"):
        walk()
    monkeypatch.setattr(lease, "RENEW_S", 60)  # noticed before the record is written, too
    stages[1].during = lambda out: out.storage.write(lease.KEY, b'{"holder": "another"}')
    with pytest.raises(Conflict, match="taken over"):
        walk(seed=1)
    assert all("record.json" not in key for key in walk.storage.keys("artifacts/train"))


def test_where_a_stage_fails_ray_goes_before_the_lease(stages: tuple[FakeStage, FakeStage], tmp_path: Path) -> None:
    walk, held = Walk(tmp_path), []
    stages[1].fails = True
    walk.on_ray_end = lambda: held.extend(
        lease.held(walk.storage.at(f"artifacts/train/{key}")) for key in walk.storage.folders("artifacts/train")
    )
    with pytest.raises(RuntimeError):
        walk()
    assert held == [True], "ranks may write until Ray has ended"


def test_what_changes_no_step_goes_on_with_the_same_training(tmp_path: Path) -> None:
    """Such as what a failed run was told to raise."""
    (tmp_path / "text.txt").write_text("the quick brown fox")

    def key(**changes: Any) -> str:
        job = JobSpec.parse(
            {
                "name": "tiny",
                "task": {"kind": "causal_lm"},
                "model": {"ref": "scratch:llama", "max_length": 32, "tokenizer": {"train": "char"}},
                "data": {"sources": [{"kind": "text", "path": str(tmp_path / "text.txt")}]},
                "train": changes,
            }
        )
        return next(step.out.key for step in runner.steps(job, open_storage(str(tmp_path))) if step.stage.NAME == "train")

    assert key() == key(max_failures=9, stall_timeout_s=5.0, log_every_steps=3, checkpoint={"every_steps": 7, "timeout_s": 9.0})
    assert key() != key(lr=1e-3)


def test_a_full_disk_is_told_as_such_and_other_os_errors_are_not_taken_for_the_storages(
    stages: tuple[FakeStage, FakeStage], tmp_path: Path
) -> None:
    def fails_with(number: int) -> Callable[[Artifact], None]:
        def fail(out: Artifact) -> None:
            raise OSError(number, "why", "/somewhere")

        return fail

    stages[1].during = fails_with(errno.ENOSPC)
    with pytest.raises(StorageError, match=r"/somewhere: .*disk is full"):
        Walk(tmp_path)()
    stages[1].during = fails_with(errno.ECONNREFUSED)
    with pytest.raises(ConnectionRefusedError):
        Walk(tmp_path)()


def test_a_dry_run_names_the_artifacts_that_the_run_makes(
    stages: tuple[FakeStage, FakeStage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    registry = Registry(open_storage(str(tmp_path)))
    registry.promote("base", "prod", registry.publish("base", model, {}).number, expect=None)
    monkeypatch.setattr("raybm.plan.lines", lambda job: [])
    job = JobSpec.parse(JOB | {"storage": str(tmp_path), "model": {"ref": "registry:base@prod"}})
    jobs._dry_run(job)
    keys = [line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()]
    assert keys == [record.key for record in Walk(tmp_path)(model={"ref": "registry:base@1"}).values()]

"""What a run leaves behind, however it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from raybm import report, runner
from raybm.cli import driver
from raybm.cli.driver import drive
from raybm.core.errors import DataError, UserError
from raybm.core.runs import Run, RunState, states
from raybm.core.storage import open_storage
from raybm.spec import JobSpec


def job(storage: str) -> JobSpec:
    data = {"sources": [{"kind": "jsonl", "path": "x.jsonl"}]}
    task, model = {"kind": "text_classification"}, {"ref": "s3://bucket/model"}
    return JobSpec.parse({"name": "j", "task": task, "model": model, "data": data, "storage": storage})


def drive_one(storage: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Run], Any]) -> RunState:
    """Drive a job whose stages are `work`. The state it leaves."""
    monkeypatch.setattr(runner, "run", lambda job, run, context, on_ray: work(run))
    try:
        drive(job(str(storage)), None)
    finally:
        (state,) = states(open_storage(str(storage)))
    return state


@pytest.mark.parametrize("breaks", [RuntimeError("no template"), KeyError("loss")])
def test_a_report_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: Exception) -> None:
    def write(*args: Any) -> None:
        raise breaks

    monkeypatch.setattr(report, "write", write)
    state = drive_one(tmp_path, monkeypatch, lambda run: {})
    assert state.state == "succeeded"
    assert "no report" in (tmp_path / "runs" / state.run / "log.txt").read_text()


def test_a_run_that_failed_says_so_though_its_report_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*args: Any) -> None:
        raise KeyboardInterrupt

    def fails(run: Run) -> None:
        run.update(artifacts={"prepare": "0"})
        raise DataError("no rows.")

    monkeypatch.setattr(report, "write", write)
    with pytest.raises(KeyboardInterrupt):
        drive_one(tmp_path, monkeypatch, fails)
    (state,) = states(open_storage(str(tmp_path)))
    assert (state.state, state.error) == ("failed", "no rows.")


def test_a_submitted_job_leaves_nothing_in_the_folder_it_was_unpacked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")
    with pytest.raises(UserError, match=r"^storage: \./out would"):
        drive(job("./out"), None)
    assert list(tmp_path.iterdir()) == []
    assert drive_one(tmp_path / "out", monkeypatch, lambda run: {}).state == "succeeded"


def test_where_work_on_ray_breaks_ray_is_left_before_what_the_caller_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    @contextmanager
    def noted(name: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError:
            told.append(f"{name}: broken")
            raise
        told.append(name)

    monkeypatch.setattr(driver, "_on_ray", lambda *args: noted("Ray"))
    with driver._on_ray_once(job(str(tmp_path)), None, False, print) as on_ray, noted("lease"), on_ray(), on_ray():
        pass
    assert told == ["lease", "Ray"], "one that goes well is kept for the next"
    told.clear()
    with pytest.raises(RuntimeError), driver._on_ray_once(job(str(tmp_path)), None, False, print) as on_ray, noted("lease"), on_ray():
        raise RuntimeError
    assert told == ["Ray: broken", "lease: broken"], "and it knows, so that its logs stay"

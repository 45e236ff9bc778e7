"""What a run leaves behind, however it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raybm import report, runner
from raybm.cli.driver import drive
from raybm.core.errors import DataError
from raybm.core.runs import Run, RunState, states
from raybm.core.storage import open_storage
from raybm.spec import JobSpec


def drive_one(storage: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Run], Any]) -> RunState:
    """Drive a job whose stages are `work`. The state it leaves."""
    data = {"sources": [{"kind": "jsonl", "path": "x.jsonl"}]}
    job = {
        "name": "j",
        "task": {"kind": "text_classification"},
        "model": {"ref": "s3://bucket/model"},
        "data": data,
        "storage": str(storage),
    }
    monkeypatch.setattr(runner, "run", lambda job, run, context, on_ray: work(run))
    try:
        drive(JobSpec.parse(job), None)
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

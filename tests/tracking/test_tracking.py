"""Trackers with their real libraries, on stores of their own in a folder: no server, no account."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from raybm.core.errors import UserError
from raybm.tracking import Mlflow, Wandb, tracked
from raybm.tracking.protocol import flattened, numbers

pytestmark = pytest.mark.integration
JOB = {"name": "reviews", "train": {"lr": 1e-4, "zero": {"stage": 2}}, "data": {"sources": [{"path": "x" * 900}]}}


@pytest.fixture(params=["mlflow", "wandb"])
def tracker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Mlflow(uri=f"file:{tmp_path}/mlflow") if request.param == "mlflow" else Wandb(offline=True)


def play(tracker: Any, folder: Path, failure: BaseException | None = None) -> None:
    with tracked([tracker], "reviews-1", JOB, folder) as listeners:
        for listener in listeners:
            listener("stage", {"stage": "prepare", "seconds": 3.0})
            listener("train", {"step": 10, "loss": 2.0, "grad_norm": None, "lr": 1e-4})
            listener("train", {"step": 10, "loss": 1.5, "lr": 1e-4})  # again, after a restart
            listener("evaluate", {"split": "test", "macro_f1": 0.8})
        if failure:
            raise failure


def recorded(tracker: Any, folder: Path) -> tuple[str, set[str]]:
    """How the run ended, where it can be told, and the names of what was logged."""
    if isinstance(tracker, Mlflow):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=tracker.uri)
        (run,) = client.search_runs([client.get_experiment_by_name("reviews").experiment_id])
        assert run.data.params["train.zero.stage"] == "2"
        assert run.info.run_name == "reviews-1"
        return run.info.status, set(run.data.metrics)
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    deadline, names = time.monotonic() + 30, set[str]()
    while "evaluate/macro_f1" not in names and time.monotonic() < deadline:  # W&B's own process writes it
        content = file.read_bytes()
        names = {name for name in ("train/loss", "train/lr", "evaluate/macro_f1", "stage/seconds") if name.encode() in content}
        threading.Event().wait(0.1)
    return "", names


def test_numbers_reach_the_tracker(tracker: Any, tmp_path: Path) -> None:
    play(tracker, tmp_path)
    status, names = recorded(tracker, tmp_path)
    assert names == {"train/loss", "train/lr", "evaluate/macro_f1"}
    assert status in ("FINISHED", "")
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_run_that_fails_is_told_as_failed(tracker: Any, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        play(tracker, tmp_path, ZeroDivisionError())
    assert recorded(tracker, tmp_path)[0] in ("FAILED", "")


def test_a_library_that_is_not_installed(tracker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, tracker.kind, None)
    with pytest.raises(UserError, match=r"raybm\[tracking\]"):
        play(tracker, tmp_path)


def test_mlflow_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        play(Mlflow(), tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1"):
        play(Mlflow(uri="http://127.0.0.1:1"), tmp_path)


def test_wandb_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        play(Wandb(), tmp_path)


def test_a_run_that_logs_nothing_leaves_no_files(tmp_path: Path) -> None:
    with tracked([], "reviews-1", JOB, tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_keys_by_path_and_numbers_alone() -> None:
    flat = dict(flattened(JOB))
    assert flat["train.zero.stage"] == "2"
    assert len(flat["data.sources"]) == 500
    assert numbers("train", {"step": 3, "loss": 1, "note": "x", "ok": True, "none": None}) == {"train/loss": 1.0}


def test_trials_are_tensorboards_hparams(tmp_path: Path) -> None:
    with tracked([], "reviews-1", JOB, tmp_path) as listeners:
        for listener in listeners:
            values = {"train.lr": 1e-3, "model.config.widths": [16, 32]}
            listener("trial", {"step": 3, "repeat": 0, "end": "finished", "values": values, "error": "", "validation.loss": 0.5})
            listener("trial", {"step": 4, "repeat": 0, "end": "failed", "values": values, "error": "it burnt."})
    written = next((tmp_path / "tensorboard" / "trial 3-0").iterdir()).read_bytes()
    assert b"_hparams_/session_start_info" in written and b"[16, 32]" in written and b"validation.loss" in written
    assert (tmp_path / "tensorboard" / "trial 4-0").is_dir()

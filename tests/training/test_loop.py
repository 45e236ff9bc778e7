"""The training loop on two real ranks (gloo, DeepSpeed), without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from raybm.core.storage import open_storage
from raybm.training import checkpoint
from tests.ranks import Ranks
from tests.training import jobs

pytestmark = pytest.mark.integration
SPEC = {"epochs": 2, "global_batch": 16, "micro_batch": 4, "lr": 2e-3, "warmup": 0.0, "log_every_steps": 1, "clip_norm": 0.5}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_losses_agree_with_plain_ddp(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    prepare = jobs.prepared(tmp_path / "prepared")
    expected = ranks.run(jobs.plain_ddp, prepare, SPEC)[0]
    losses, summary = ranks.run(jobs.train, prepare, str(tmp_path / "out"), SPEC | {"zero": {"stage": stage}})[0]
    assert len(losses) == summary["steps"] == 10  # 70 rows: 5 steps an epoch, the last one of 6 rows
    assert losses == pytest.approx(expected, abs=1e-4)


def test_resumes_from_the_last_commit_with_the_same_losses(ranks: Ranks, tmp_path: Path) -> None:
    prepare = jobs.prepared(tmp_path / "prepared")
    whole, summary = ranks.run(jobs.train, prepare, str(tmp_path / "whole"), SPEC | {"zero": {"stage": 2}})[0]
    broken = SPEC | {"zero": {"stage": 2}, "checkpoint": {"every_steps": 4}}
    ranks.run(jobs.train, prepare, str(tmp_path / "out"), broken)
    storage = open_storage(str(tmp_path / "out"))
    assert len(storage.folders(checkpoint.FOLDER)) == 1 + len(checkpoint.commits(storage))  # what is kept, and the markers' folder
    for commit in checkpoint.commits(storage)[1:]:
        storage.delete(f"{checkpoint.MARKERS}/{commit.step:08d}.json")  # as if killed before the marker: the folder alone is nothing
    left = checkpoint.commits(storage)[-1].step
    again, resumed = ranks.run(jobs.train, prepare, str(tmp_path / "out"), broken)[0]
    assert again == pytest.approx(whole[left:], abs=1e-6)
    assert resumed["train_loss"] == pytest.approx(summary["train_loss"], abs=1e-6)
    assert resumed["tokens"] == summary["tokens"]


def test_keeps_the_last_and_the_best(ranks: Ranks, tmp_path: Path) -> None:
    prepare = jobs.prepared(tmp_path / "prepared")
    spec = SPEC | {"epochs": 4, "early_stopping": {"metric": "loss", "patience": 1, "min_delta": 10.0}, "zero": {"stage": 1}}
    _, summary = ranks.run(jobs.train, prepare, str(tmp_path / "out"), spec)[0]
    assert summary["steps"] == 10  # the second validation is not better by 10: it stops after two epochs
    kept = checkpoint.commits(open_storage(str(tmp_path / "out")))
    assert kept[-1].step == 10
    best = checkpoint.best(kept, "loss")
    assert best is not None
    assert summary["published_step"] == best.step
    assert len(kept) <= 2

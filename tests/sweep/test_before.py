"""What is told of a sweep before its first trial."""

from __future__ import annotations

from pathlib import Path

import pytest

from raybm.core.errors import SpecError
from raybm.spec.sweep import SweepSpec
from raybm.sweep.before import check, prepares
from tests.sweep.test_search import job


def test_values_that_the_job_does_not_take(tmp_path: Path) -> None:
    space = {
        "train.lrr": [1],
        "train.lr": {"uniform": [-1, 1]},
        "train.zero.stage": [1, 7],
        "train.micro_batch": [4, 5],
        "train.epochs": [1, 2],
    }
    with pytest.raises(SpecError) as caught:
        check(job(tmp_path, {"space": space}))
    text = str(caught.value)
    assert "sweep.space.train.lrr" in text and "Did you mean 'lr'?" in text
    assert "sweep.space.train.lr: with -1.0" in text and "sweep.space.train.zero.stage: with 7" in text
    assert "sweep.space.train.micro_batch: with 5: train.global_batch: 32 samples cannot be dealt" in text and "epochs" not in text


@pytest.mark.parametrize(
    ("path", "rows"),
    [
        ("task.label_smoothing", True),
        ("data", True),
        ("model", True),
        ("model.max_length", True),
        ("model.tokenizer.vocab_size", True),
        ("model.lora.rank", False),
        ("train.lr", False),
    ],
)
def test_trials_share_rows_unless_a_field_decides_them(path: str, rows: bool) -> None:
    assert prepares(SweepSpec.parse({"space": {path: [1, 2]}, "sampler": {"kind": "grid"}}, "sweep")) == rows

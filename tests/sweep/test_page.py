"""What sweep.html shows."""

from __future__ import annotations

import re
from pathlib import Path

from raybm.sweep.page import write
from tests.sweep.test_search import GRID, end, search


def test_the_page(tmp_path: Path) -> None:
    space = {
        "train.lr": {"loguniform": [1e-4, 1e-1]},
        "train.optimizer": ["adamw", "sgd"],
        "train.ema": {"choice": [0.9], "when": {"train.optimizer": "sgd"}},
    }
    objectives = {"validation.loss": "min", "train.seconds": "min", "train.tokens_per_s": "max"}
    found = search(tmp_path, {"space": space, "budget": {"trials": 8}, "objectives": objectives})
    for loss in (3.0, 1.0, 2.0, 4.0, 2.5, 1.5, 1.0):
        following = found.next()
        assert following is not None
        point, trial = following
        trial = found.reported(point, trial, {"validations": 1, "validation.loss": 5.0})
        metrics = {"validation.loss": loss, "train.seconds": 1 / loss, "train.tokens_per_s": loss}
        found.ended(point, trial.model_copy(update={"end": "finished", "metrics": metrics, "seconds": 360.0}))
    end(found)
    text = write(found, tmp_path).read_text(encoding="utf-8")
    for shown in (
        "best: point",
        "7 finished",
        "1 failed",
        "it burnt.",
        "What matters",
        "train.optimizer",
        "Values and what came of them",
        "validation.loss by validations",
        "Best validation.loss by hours of all trials together",
        "validation.loss and train.seconds, the front",
        "validation.loss and train.tokens_per_s, the front",
    ):
        assert shown in text
    assert "<script" not in text and "http" not in text.replace("http-equiv", "")


def test_the_page_of_a_wide_range(tmp_path: Path) -> None:
    found = search(tmp_path, {"space": {"train.max_steps": {"randint": [1, 10**9]}}, "budget": {"trials": 2}})
    end(found, loss=1.0), end(found, loss=2.0)
    assert "train.max_steps" in write(found, tmp_path).read_text(encoding="utf-8")


def test_the_page_of_values_that_are_null_and_of_none(tmp_path: Path) -> None:
    conditional = {"choice": [0.1, 0.2], "when": {"train.ema": 0.999}}
    found = search(tmp_path, {"space": {"train.ema": [0.999, None], "train.lr": conditional}, "sampler": {"kind": "grid"}})
    for loss in (2.0, 3.0, 1.0):
        end(found, loss=loss)
    text = write(found, tmp_path).read_text(encoding="utf-8")
    assert "point 3: None" in text, "the best one, with null"
    lines = [points.split() for points in re.findall(r'<polyline[^>]* points="([^"]*)"><title>point 3<', text)]
    assert [len(points) for points in lines] == [2, 2], "nothing between null and the loss"


def test_a_page_of_nothing(tmp_path: Path) -> None:
    assert "nothing finished" in write(search(tmp_path, GRID), tmp_path).read_text(encoding="utf-8")

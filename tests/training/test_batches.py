from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

from raybm.spec.train import TrainSpec
from raybm.training.batches import Schedule, in_order, open_rows
from raybm.training.zero import learning_rate
from tests.training import jobs


@pytest.mark.parametrize(("rows", "batch", "workers", "micro"), [(70, 16, 2, 4), (10, 4, 1, None), (7, 6, 3, 1), (3, 8, 2, 2)])
def test_an_epoch_shows_every_row_once(rows: int, batch: int, workers: int, micro: int | None) -> None:
    schedule = Schedule(rows, batch, workers, micro, seed=1)
    for epoch in range(2):
        first = epoch * schedule.steps_per_epoch
        parts = [schedule.step(first + step, rank) for step in range(schedule.steps_per_epoch) for rank in range(workers)]
        assert sorted(chain.from_iterable(chain.from_iterable(parts))) == list(range(rows))
        assert {len(part) for part in parts} == {schedule.accumulation}  # all ranks make the same number of passes


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    assert Schedule(70, 16, 2, 4, 1).step(7, 1) == Schedule(70, 16, 2, 4, 1).step(7, 1)
    assert Schedule(70, 16, 2, 4, 1).step(7, 1) != Schedule(70, 16, 2, 4, 2).step(7, 1)
    one, two = Schedule(70, 16, 1, None, 1), Schedule(70, 16, 2, None, 1)
    assert sorted(one.step(3, 0)[0]) == sorted([*two.step(3, 0)[0], *two.step(3, 1)[0]])  # whatever the number of workers


@pytest.mark.parametrize(("rows", "workers", "batch"), [(13, 2, 4), (1, 3, 4), (0, 2, 4)])
def test_validation_passes_are_equal_on_all_ranks(rows: int, workers: int, batch: int) -> None:
    parts = [list(in_order(rows, workers, rank, batch)) for rank in range(workers)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(chain.from_iterable(chain.from_iterable(parts))) == list(range(rows))


def test_rows_come_back_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybm.training.batches.CACHE", str(tmp_path / "cache"))
    rows = open_rows(jobs.prepared(tmp_path / "prepared", rows=9), "train")
    assert len(rows) == 9
    assert [row["labels"].tolist() for row in rows.take([2, 0])] == [[int(rows.take([i])[0]["input_ids"][0]) % 3] for i in (2, 0)]
    assert len(open_rows(jobs.prepared(tmp_path / "none"), "test")) == 0


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_learning_rate(schedule: str) -> None:
    spec = TrainSpec.parse({"lr": 1.0, "warmup": 0.1, "schedule": schedule})
    rates = [learning_rate(spec, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == (1.0 if schedule == "constant" else pytest.approx(0.0, abs=0.02))

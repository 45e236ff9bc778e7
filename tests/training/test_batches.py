from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raybm.core.errors import StorageError, UserError
from raybm.spec.train import TrainSpec
from raybm.training.batches import Rows, Schedule, check_batch, count_rows, open_rows
from raybm.training.optimizers import learning_rate
from tests.training import jobs

PAIRS = {"input_ids": [[1, 2], [1]], "positive_ids": [[1, 2, 3], [1, 2, 3, 4]], "starts": [[1], [1]]}
LENGTHS = np.random.default_rng(0).integers(1, 20, 70)


@pytest.mark.parametrize(("rows", "batch", "workers", "micro"), [(70, 16, 2, 4), (10, 4, 1, None), (7, 6, 3, 1), (3, 8, 2, 2)])
def test_an_epoch_shows_every_row_once(rows: int, batch: int, workers: int, micro: int | None) -> None:
    for settings in ({"micro_batch": micro}, {"micro_tokens": 40}, {"micro_tokens": 40, "buckets": True}):
        schedule = Schedule(LENGTHS[:rows], batch, workers, 1, **settings)
        for epoch in range(2):
            seen = []
            for step in range(epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch):
                parts = [schedule.step(step, rank) for rank in range(workers)]
                assert len({len(part) for part in parts}) == 1  # all ranks make the same number of passes
                seen += chain.from_iterable(chain.from_iterable(parts))
            assert sorted(seen) == list(range(rows))


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    assert Schedule(LENGTHS, 16, 2, 1, 4).step(7, 1) == Schedule(LENGTHS, 16, 2, 1, 4).step(7, 1)
    assert Schedule(LENGTHS, 16, 2, 1, 4).step(7, 1) != Schedule(LENGTHS, 16, 2, 2, 4).step(7, 1)
    one, two = Schedule(LENGTHS, 16, 1, 1), Schedule(LENGTHS, 16, 2, 1)
    assert len(one.step(3, 0)) == len(two.step(3, 0)) == 1
    assert sorted(one.step(3, 0)[0]) == sorted([*two.step(3, 0)[0], *two.step(3, 1)[0]])  # whatever the number of workers


def test_workers_compute_about_equally_much() -> None:
    lengths = np.array([100, *[10] * 31])
    long, short = (Schedule(lengths, 32, 2, 1).step(0, rank)[0] for rank in (0, 1))
    assert max(len(part) * lengths[part].max() for part in (long, short)) < 0.25 * 16 * 100  # of halves with the long row in one
    assert len(long) + len(short) == 32


def test_a_token_budget_holds_and_like_lengths_go_together() -> None:
    schedule = Schedule(LENGTHS, 32, 2, 1, micro_tokens=60)
    passes = [part for rank in (0, 1) for part in schedule.step(0, rank) if part]
    assert all(len(part) * max(LENGTHS[list(part)]) <= 60 for part in passes)
    padded = sum(len(part) * int(max(LENGTHS[list(part)])) for part in passes)
    assert padded < 1.25 * sum(int(LENGTHS[list(part)].sum()) for part in passes)


@pytest.mark.parametrize("buckets", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_batch_in_tokens_has_as_many_tokens_on_any_number_of_workers(workers: int, buckets: bool) -> None:
    schedule = Schedule(LENGTHS, 32, workers, 1, buckets=buckets, global_tokens=100)
    assert schedule.steps_per_epoch == -(-int(LENGTHS.sum()) // 100)
    for epoch in range(2):
        steps = range(epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch)
        rows = [[row for rank in range(workers) for part in schedule.step(step, rank) for row in part] for step in steps]
        assert sorted(chain.from_iterable(rows)) == list(range(len(LENGTHS)))
        counts = [int(LENGTHS[step].sum()) for step in rows]
        assert all(100 - 20 < count < 100 + 20 for count in counts[:-1])
        assert 0 < counts[-1] < 100 + 20


def test_the_last_row_belongs_to_the_last_step() -> None:
    schedule = Schedule(np.array([10, 40, 50]), 32, 1, 1, global_tokens=50)
    assert [len(schedule.step(step, 0)) for step in range(schedule.steps_per_epoch)] == [1, 1]


def test_buckets_leave_little_padding_and_shuffle_the_steps() -> None:
    schedule = Schedule(LENGTHS, 8, 1, 1, buckets=True)
    longest = [max(LENGTHS[list(schedule.step(step, 0)[0])]) for step in range(8)]
    shortest = [min(LENGTHS[list(schedule.step(step, 0)[0])]) for step in range(8)]
    assert max(a - b for a, b in zip(longest, shortest, strict=True)) <= 4
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


@pytest.mark.parametrize(("rows", "workers", "batch"), [(13, 2, 4), (1, 3, 4), (0, 2, 4)])
def test_validation_passes_are_equal_on_all_ranks(rows: int, workers: int, batch: int) -> None:
    parts = [Schedule(LENGTHS, 8, workers, 1, batch).everything(LENGTHS[:rows], rank) for rank in range(workers)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(chain.from_iterable(chain.from_iterable(parts))) == list(range(rows))


def test_rows_come_back_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybm.core.cache.ROOT", str(tmp_path / "cache"))
    rows = open_rows(jobs.prepared(tmp_path / "prepared", rows=9), "train")
    assert len(rows) == 9
    assert [row["labels"].tolist() for row in rows.take([2, 0])] == [[int(rows.take([i])[0]["input_ids"][0]) % 3] for i in (2, 0)]
    assert len(open_rows(jobs.prepared(tmp_path / "none"), "test")) == 0


def test_a_batch_that_the_data_cannot_fill_is_refused(tmp_path: Path) -> None:
    rows = count_rows(jobs.prepared(tmp_path / "prepared", rows=9), "train")
    check_batch(rows, 90, TrainSpec.parse({"global_batch": 9}))
    check_batch(rows, 90, TrainSpec.parse({"global_tokens": 90}))
    with pytest.raises(UserError, match="10 is more than the 9 sequences"):
        check_batch(rows, 90, TrainSpec.parse({"global_batch": 10}))
    with pytest.raises(UserError, match="91 is more than the 90 tokens"):
        check_batch(rows, 90, TrainSpec.parse({"global_tokens": 91}))


def test_a_node_that_sees_other_rows_takes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybm.core.cache.ROOT", str(tmp_path / "cache"))
    prepared = jobs.prepared(tmp_path / "prepared", rows=9)
    with pytest.raises(StorageError, match="9 of the 10 sequences for train are seen on"):
        open_rows(prepared, "train", 10)
    assert len(open_rows(prepared, "train", 9)) == 9
    assert [len(values) for _, values in open_rows(prepared, "train").column("labels")] == [9]
    with pytest.raises(StorageError, match="9 of the 10 sequences"):
        open_rows(prepared, "train", 10)  # also where there is a file already


def test_a_rows_longest_sequence_is_what_it_costs(tmp_path: Path) -> None:
    target = tmp_path / "rows.arrow"
    table = pa.record_batch({name: pa.array(rows, pa.large_list(pa.int32())) for name, rows in PAIRS.items()})
    with pa.ipc.new_file(str(target), table.schema) as writer:
        writer.write_batch(table)
    rows = Rows(target)
    assert rows.lengths.tolist() == [2, 1] and rows.sizes.tolist() == [3, 4]
    schedule = Schedule.of(TrainSpec.parse({"global_tokens": 3, "micro_tokens": 4}), rows, 1, 0)
    assert schedule.steps_per_epoch == 1 and [len(part) for part in schedule.step(0, 0)] == [1, 1]


def test_rows_of_many_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybm.core.cache.ROOT", str(tmp_path / "cache"))
    whole = open_rows(jobs.prepared(tmp_path / "prepared", rows=25), "train")
    monkeypatch.setattr("raybm.training.batches.BATCH_ROWS", 4)
    monkeypatch.setattr("raybm.core.cache.ROOT", str(tmp_path / "cache2"))
    parted = open_rows(jobs.prepared(tmp_path / "again", rows=25), "train")
    assert parted.lengths.tolist() == whole.lengths.tolist()
    places = [24, 0, 3, 4, 23, 8]
    assert [row["input_ids"].tolist() for row in parted.take(places)] == [row["input_ids"].tolist() for row in whole.take(places)]


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [
        ("linear", 0.5, 0.0),
        ("cosine", 0.5, 0.0),
        ("constant", 1.0, 1.0),
        ("plateau", 1.0, 1.0),
        ("wsd", 1.0, 0.05),
        ("inverse_sqrt", 0.42, 0.316),
    ],
)
def test_learning_rate(schedule: str, middle: float, last: float) -> None:
    spec = TrainSpec.parse({"lr": 1.0, "warmup": 0.1, "schedule": schedule})
    rates = [learning_rate(spec, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(middle, abs=0.02)
    assert rates[-1] == pytest.approx(last, abs=0.02)


def test_a_rate_that_keeps_a_share() -> None:
    spec = TrainSpec.parse({"lr": 1.0, "warmup": 0, "schedule": "cosine", "min_lr_share": 0.1})
    assert learning_rate(spec, 99, 100) == pytest.approx(0.1, abs=0.01)

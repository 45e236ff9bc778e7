"""The thread that makes batches: what goes wrong in it is told where the batch is asked for."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from raybm.core.errors import DeadlineExceeded
from raybm.tasks import TextClassification
from raybm.training.batches import Schedule, open_rows
from raybm.training.loader import AHEAD, Loader
from raybm.training.profile import covered
from tests.training import jobs


class Stuck:
    """Rows that a dead file system never gives."""

    def __init__(self, rows: Any) -> None:
        self.lengths, self.ended = rows.lengths, threading.Event()

    def take(self, indices: Any) -> list[dict[str, Any]]:
        self.ended.wait(30)
        return []


def test_rows_that_do_not_come_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybm.core.cache.ROOT", str(tmp_path / "cache"))
    rows = Stuck(open_rows(jobs.prepared(tmp_path / "prepared", rows=9), "train"))
    loader = Loader(TextClassification().build(), jobs.tokenizer(), rows, Schedule(rows.lengths, 3, 1, 1), 0, 0, 2, 0.2)
    with loader:
        with pytest.raises(DeadlineExceeded, match=r"no batch for 0\.2 s"):
            loader.next()
        rows.ended.set()


def test_batches_are_made_before_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybm.core.cache.ROOT", str(tmp_path / "cache"))
    rows, made = open_rows(jobs.prepared(tmp_path / "prepared", rows=9), "train"), threading.Semaphore(0)
    taken = rows.take
    monkeypatch.setattr(rows, "take", lambda indices: (made.release(), taken(indices))[1])
    with Loader(TextClassification().build(), jobs.tokenizer(), rows, Schedule(rows.lengths, 3, 1, 1), 0, 0, 9, 5) as loader:
        assert all(made.acquire(timeout=30) for _ in range(AHEAD + 1))  # the last of them waits for room
        assert not made.acquire(timeout=0.5)
        loader.next()
        assert made.acquire(timeout=30) and not made.acquire(timeout=0.5)


def test_what_several_collectives_cover_counts_once() -> None:
    assert covered([(4, 6), (0, 2), (1, 3), (5, 5.5)]) == 5
    assert covered([]) == 0

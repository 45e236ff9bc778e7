"""The batches of the steps to come, made in a thread while the model computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raybm.core.errors import DeadlineExceeded
from raybm.tasks.protocol import Batch, Task
from raybm.training.batches import Rows, Schedule

AHEAD = 2  # steps
POLL_S = 0.2


@dataclass(frozen=True)
class Step:
    """A rank's micro-batches of a step, and what was counted in them while they were on the CPU."""

    batches: tuple[Batch, ...]
    units: int
    tokens: int
    """Padding apart."""
    padded: int
    """With padding; as `tokens` where rows are no sequences."""
    samples: int


def collate(task: Task, processor: Any, rows: Rows, parts: Sequence[Sequence[int]], seed: int | None) -> Step:
    """Micro-batches of the rows at these places."""
    batches = [task.collate(rows.take(part), processor, None if seed is None else seed + place) for place, part in enumerate(parts)]
    samples, tokens = sum(map(len, parts)), sum(int(rows.lengths[part].sum()) for part in parts if len(part))
    return Step(
        batches=tuple(batches),
        units=sum(int(task.units(batch)) for batch in batches),
        tokens=tokens,
        padded=sum(batch["input_ids"].numel() for batch in batches) if "input_ids" in batches[0] else tokens,
        samples=samples,
    )


class Loader:
    """Steps `first` to `total` in order, `AHEAD` of them ready. What raises in the thread is raised by `next`."""

    def __init__(
        self, task: Task, processor: Any, rows: Rows, schedule: Schedule, rank: int, first: int, total: int, timeout_s: float
    ) -> None:
        self.task, self.processor, self.rows, self.schedule, self.rank, self.timeout_s = task, processor, rows, schedule, rank, timeout_s
        self.ready: queue.Queue[Step | BaseException] = queue.Queue(AHEAD)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._work, args=(first, total), name="loader", daemon=True)

    def __enter__(self) -> Loader:
        self.thread.start()
        return self

    def next(self) -> Step:
        try:
            made = self.ready.get(timeout=self.timeout_s)
        except queue.Empty:
            raise DeadlineExceeded(
                f"no batch for {self.timeout_s:g} s.", where="train", remedy="Look at the storage of the rows; raise train.stall_timeout_s."
            ) from None
        if isinstance(made, BaseException):
            raise made
        return made

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join(timeout=60)

    def _work(self, first: int, total: int) -> None:
        try:
            for step in range(first, total):
                parts = self.schedule.step(step, self.rank)
                made = collate(self.task, self.processor, self.rows, parts, draw(self.schedule.seed, step, self.rank))
                if torch.cuda.is_available():
                    made = Step(tuple(_pinned(batch) for batch in made.batches), made.units, made.tokens, made.padded, made.samples)
                if not self._offer(made):
                    return
        except BaseException as error:  # noqa: BLE001  (raised where the step is taken)
            self._offer(error)

    def _offer(self, made: Step | BaseException) -> bool:
        while not self.ended.is_set():
            try:
                self.ready.put(made, timeout=POLL_S)
            except queue.Full:
                continue
            return True
        return False


def draw(seed: int, step: int, rank: int) -> int:
    """A seed for what is drawn in a step: masks, crops, dropout. The same after a restart."""
    return ((seed * 1_000_003 + step) * 1_000_003 + rank * 1009) % (1 << 62)


def _pinned(batch: Batch) -> Batch:
    return {name: tensor.pin_memory() for name, tensor in batch.items()}

"""What a job reads and writes: bytes on disk, and how many rows there will be, both rough."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raybm.data.files import expand
from raybm.models.shapes import Shape
from raybm.plan.job import idle, packed
from raybm.plan.memory import Setup
from raybm.spec.job import JobSpec

CHECKPOINTS = 3  # the last, the best and the one being written
TOKEN_BYTES = 4  # of text: about what a subword tokenizer makes of English
HEAD_BYTES = 65536  # of a file, looked at for the length of its lines
ONE_ROW_A_LINE = ("jsonl", "csv", "tsv", "text")


@dataclass(frozen=True)
class Disk:
    """Bytes that the job writes into its storage. `data` is rough: cleaned and encoded rows, each about as large as the sources."""

    sources: int
    data: int
    checkpoint: int
    """One of them."""
    model: int
    published: int

    @property
    def total(self) -> int:
        return self.data + CHECKPOINTS * self.checkpoint + self.model + self.published


def disk(job: JobSpec, shape: Shape, setup: Setup) -> Disk:
    """A checkpoint holds all weights, quantised ones as they are, and of those that learn an fp32 copy, the optimiser's states (for AdamW
    12 bytes in all: ZeRO §3.1, K = 12) and the average. Raises NotFound for sources that are not there, StorageError."""
    read = sum(file.bytes for source in job.data.sources for file in expand(source.path))
    copied = setup.each == 2 or job.train.zero.stage != 0
    checkpoint = setup.whole(shape) + shape.trainable * (setup.states + 4 * copied + 4 * setup.averaged)
    model = (shape.parameters - idle(job, shape)) * setup.each
    return Disk(read, 2 * read, checkpoint, model, model if job.publish else 0)


def steps(job: JobSpec, global_batch: int) -> int | None:
    """Optimiser steps of the run: by `max_steps`, else by the rows that the sources seem to hold. None where only reading them
    would tell. Raises NotFound, StorageError."""
    if job.train.max_steps:
        return job.train.max_steps
    rows = _rows(job)
    return None if rows is None else max(1, math.ceil(job.train.epochs * rows / global_batch))


def _rows(job: JobSpec) -> float | None:
    """For training, before cleaning: lines, or blocks of `max_length` tokens where text is packed."""
    filled = packed(job)
    if filled is None:
        return None
    dealt = 1 - job.data.split.validation - job.data.split.test
    total = 0.0
    for source in job.data.sources:
        if getattr(source, "slice", None) or getattr(source, "split", None) not in (None, "train"):
            continue
        share = dealt if getattr(source, "split", None) is None else 1.0
        for file in expand(source.path):
            if filled:
                total += share * file.bytes / TOKEN_BYTES / job.model.max_length
            elif source.kind in ONE_ROW_A_LINE and file.storage is None and not file.path.endswith(".gz") and file.path.startswith("/"):
                with open(file.path, "rb") as stream:  # noqa: PTH123  (a path of this machine, as `expand` gives it)
                    head = stream.read(HEAD_BYTES)
                total += share * file.bytes * head.count(b"\n") / max(1, len(head))
            else:
                return None
    return total

"""Which rows a rank sees at which step.

The order is a pure function of seed, epoch and step, so a resumed run sees what an undisturbed one would have seen.
Rows are read from Arrow files that the ranks of a node share through the page cache: no rank holds the data set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from raybm.core.artifact import Artifact

CACHE = "~/.raybm/cache/rows"
LOCK_TIMEOUT_S = 1800.0


class Rows:
    """Random access to the encoded rows of a split; memory-mapped, every column a list of integers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _columns(self) -> dict[str, tuple[Any, Any]]:
        table = pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()
        columns = {}
        for name in table.column_names:
            chunks = table[name].chunks  # one, as `open_rows` writes it; none where there are no rows
            lists = chunks[0] if chunks else pa.array([], table[name].type)
            columns[name] = (lists.offsets.to_numpy(), lists.values.to_numpy())
        return columns

    def __len__(self) -> int:
        return max((len(offsets) - 1 for offsets, _ in self._columns.values()), default=0)

    def take(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [{name: values[offsets[i] : offsets[i + 1]] for name, (offsets, values) in self._columns.items()} for i in indices]


def open_rows(prepared: Artifact, split: str) -> Rows:
    """The split's Parquet as one Arrow file on this node, made by the first rank that comes."""
    target = Path(CACHE).expanduser() / f"{prepared.key}-{split}.arrow"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock", timeout=LOCK_TIMEOUT_S):
        if not target.exists():
            filesystem, folder = prepared.storage.arrow(f"encoded/{split}")
            found = bool(prepared.storage.keys(f"encoded/{split}"))
            table = pq.read_table(folder, filesystem=filesystem, columns=["input_ids", "labels"]) if found else _empty()
            lists = pa.table({name: table[name].combine_chunks().cast(pa.large_list(pa.int32())) for name in table.column_names})
            partial = target.with_suffix(".partial")
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, lists.schema) as writer:
                writer.write_table(lists.combine_chunks())
            partial.rename(target)
    return Rows(target)


def _empty() -> pa.Table:
    return pa.table({name: pa.array([], pa.list_(pa.int32())) for name in ("input_ids", "labels")})


class Schedule:
    """Deals rows to steps, ranks and micro-batches. Steps count from 0 here."""

    def __init__(self, rows: int, global_batch: int, workers: int, micro_batch: int | None, seed: int) -> None:
        self.rows, self.global_batch, self.workers, self.seed = rows, global_batch, workers, seed
        self.micro_batch = micro_batch or global_batch // workers
        self.accumulation = global_batch // (workers * self.micro_batch)
        self.steps_per_epoch = math.ceil(rows / global_batch)

    def total_steps(self, epochs: float, max_steps: int | None) -> int:
        return max_steps or max(1, math.ceil(epochs * self.steps_per_epoch))

    def step(self, step: int, rank: int) -> list[Sequence[int]]:
        """The rank's micro-batches of a step, as row indices. The last batch of an epoch is smaller and is dealt evenly;
        a micro-batch may then be empty, so that all ranks make the same number of passes."""
        epoch, place = divmod(step, self.steps_per_epoch)
        batch = self._order(epoch)[place * self.global_batch : (place + 1) * self.global_batch]
        parts = np.array_split(batch, self.workers * self.accumulation)
        return [parts[micro * self.workers + rank].tolist() for micro in range(self.accumulation)]

    def _order(self, epoch: int) -> Any:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._permutation = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return self._permutation


def in_order(rows: int, workers: int, rank: int, batch: int) -> Iterator[Sequence[int]]:
    """A split from front to back, for validation: every rank gets the same number of batches, some perhaps empty."""
    passes = math.ceil(rows / (workers * batch))
    for index in range(passes):
        start = (index * workers + rank) * batch
        yield range(min(start, rows), min(start + batch, rows))

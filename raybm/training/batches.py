"""Which rows a rank sees at which step.

The order is a pure function of seed, epoch, step and the rows' lengths, so a resumed run sees what an undisturbed one would have seen.
Rows are read from Arrow files that the ranks of a node share through the page cache: no rank holds the data set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from raybm.core.artifact import Artifact
from raybm.core.cache import cache_folder

LOCK_TIMEOUT_S = 1800.0
BUCKET_STEPS = 50  # whose rows are sorted by length together (as transformers' group_by_length)

Lengths = np.ndarray[Any, np.dtype[np.int64]]


class Rows:
    """Random access to the encoded rows of a split; memory-mapped, every column a list of numbers."""

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

    @cached_property
    def lengths(self) -> Lengths:
        """Tokens of each row; 1 where rows are no sequences."""
        if "input_ids" not in self._columns:
            return np.ones(len(self), np.int64)
        lengths: Lengths = np.diff(self._columns["input_ids"][0]).astype(np.int64)
        return lengths

    def take(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [{name: values[offsets[i] : offsets[i + 1]] for name, (offsets, values) in self._columns.items()} for i in indices]


def open_rows(prepared: Artifact, split: str) -> Rows:
    """The split's Parquet as one Arrow file on this node, made by the first rank that comes."""
    target = cache_folder("rows") / f"{prepared.key}-{split}.arrow"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock", timeout=LOCK_TIMEOUT_S):
        if not target.exists():
            filesystem, folder = prepared.storage.arrow(f"encoded/{split}")
            table = pq.read_table(folder, filesystem=filesystem) if prepared.storage.keys(f"encoded/{split}") else pa.table({})
            lists = pa.table(
                {name: table[name].combine_chunks().cast(pa.large_list(table[name].type.value_type)) for name in table.schema.names}
            )
            partial = target.with_suffix(".partial")
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, lists.schema) as writer:
                writer.write_table(lists.combine_chunks())
            partial.rename(target)
    return Rows(target)


class Schedule:
    """Deals rows to steps, ranks and micro-batches. Steps count from 0 here.

    A step's rows are sorted by length and cut into passes that cost about the same, padding included: the longer the rows, the fewer
    of them. So little is padded and no rank waits for another. The loss is a sum over the whole batch, which does not depend
    on how it is dealt.
    """

    def __init__(
        self,
        lengths: Lengths,
        global_batch: int,
        workers: int,
        seed: int,
        micro_batch: int | None = None,
        micro_tokens: int | None = None,
        buckets: bool = False,
    ) -> None:
        self.lengths, self.global_batch, self.workers, self.seed, self.buckets = lengths, global_batch, workers, seed, buckets
        self.micro_batch, self.micro_tokens = micro_batch, micro_tokens
        self.steps_per_epoch = math.ceil(len(lengths) / global_batch)

    def total_steps(self, epochs: float, max_steps: int | None) -> int:
        return max_steps or max(1, math.ceil(epochs * self.steps_per_epoch))

    def step(self, step: int, rank: int) -> list[Sequence[int]]:
        """The rank's micro-batches of a step, as row indices. All ranks have the same number of them; where rows do not suffice
        (the last batch of an epoch), some are empty."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rows = self._order(epoch)[place * self.global_batch : (place + 1) * self.global_batch]
        return self._deal(rows, self.lengths, rank, self.micro_batch or len(rows))

    def everything(self, lengths: Lengths, rank: int) -> list[Sequence[int]]:
        """The rank's micro-batches of a whole other split, of rows of these lengths."""
        rows = np.arange(len(lengths))
        return self._deal(rows, lengths, rank, self.micro_batch or max(1, self.global_batch // self.workers)) if len(rows) else []

    def _deal(self, rows: Any, lengths: Lengths, rank: int, most_rows: int) -> list[Sequence[int]]:
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        costs = np.maximum(lengths[rows], 1)
        most = self.micro_tokens or int(costs[0]) * most_rows
        passes = -(-len(_cuts(costs, most, most_rows)) // self.workers)
        low, high = int(costs[0]), most  # the least cost of a pass with which so many of them suffice
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(_cuts(costs, middle, most_rows)) <= passes * self.workers else (middle + 1, high)
        starts = _cuts(costs, low, most_rows)
        parts = [rows[start:end].tolist() for start, end in pairwise([*starts, len(rows)])]
        parts += [[]] * (passes * self.workers - len(parts))
        return parts[rank :: self.workers]

    def _order(self, epoch: int) -> Any:
        if getattr(self, "_epoch", None) != epoch:
            random = np.random.default_rng([self.seed, epoch])
            order = random.permutation(len(self.lengths))
            self._epoch, self._permutation = epoch, self._bucketed(order, random) if self.buckets else order
        return self._permutation

    def _bucketed(self, order: Any, random: np.random.Generator) -> Any:
        """The order with rows of like length in one step: windows of BUCKET_STEPS steps are sorted, then their steps shuffled. A
        last, smaller batch stays last."""
        whole = len(order) - len(order) % self.global_batch
        window = BUCKET_STEPS * self.global_batch
        made = []
        for start in range(0, whole, window):
            part = order[start : min(start + window, whole)]
            steps = part[np.argsort(-self.lengths[part], kind="stable")].reshape(-1, self.global_batch)
            made.append(random.permutation(steps).ravel())
        return np.concatenate([*made, order[whole:]])


def _cuts(costs: Any, most: int, most_rows: int) -> list[int]:
    """Where passes begin, each of at most `most_rows` rows and as long as rows × the longest is within `most`. `costs` fall."""
    starts, start = [], 0
    while start < len(costs):
        starts.append(start)
        start += min(most_rows, max(1, most // int(costs[start])))
    return starts

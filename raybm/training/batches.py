"""Which rows a rank sees at which step.

The order is a pure function of seed, epoch, step and the rows' lengths, so a resumed run sees what an undisturbed one would have seen.
Rows are read from Arrow files that the ranks of a node share through the page cache: no rank holds the data set.
"""

from __future__ import annotations

import math
import socket
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from raybm.core.artifact import Artifact
from raybm.core.cache import cache_folder
from raybm.core.errors import StorageError, UserError
from raybm.core.storage import Storage, arrow_errors
from raybm.spec.train import TrainSpec

LOCK_TIMEOUT_S = 1800.0
BATCH_ROWS = 16384  # that are in memory at once while the file is made
BUCKET_STEPS = 50  # whose rows are sorted by length together (as transformers' group_by_length)

Lengths = np.ndarray[Any, np.dtype[np.int64]]


class Rows:
    """Random access to the encoded rows of a split; memory-mapped, every column a list of numbers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _batches(self) -> list[dict[str, tuple[Any, Any]]]:
        """Offsets and values of every column, batch by batch as `open_rows` wrote them."""
        with pa.ipc.open_file(pa.memory_map(str(self.path))) as file:
            batches = [file.get_batch(place) for place in range(file.num_record_batches)]
        return [{name: (batch[name].offsets.to_numpy(), batch[name].values.to_numpy()) for name in batch.schema.names} for batch in batches]

    @cached_property
    def _starts(self) -> list[int]:
        """The first row of every batch, and the number of all."""
        return [0, *accumulate(len(next(iter(batch.values()))[0]) - 1 for batch in self._batches)]

    def __len__(self) -> int:
        return self._starts[-1]

    @cached_property
    def lengths(self) -> Lengths:
        """Tokens of each row; 1 where rows are no sequences."""
        return self._lengths("input_ids")

    @cached_property
    def sizes(self) -> Lengths:
        """Of each row the longest of its sequences: of a pair, a source with its target."""
        names = self._batches[0] if self._batches else ()
        sizes: Lengths = np.maximum.reduce([self.lengths, *(self._lengths(name) for name in names if name.endswith(("_ids", "labels")))])
        return sizes

    def _lengths(self, name: str) -> Lengths:
        if not self._batches or name not in self._batches[0]:
            return np.ones(len(self), np.int64)
        lengths: Lengths = np.concatenate([np.diff(batch[name][0]) for batch in self._batches]).astype(np.int64)
        return lengths

    def column(self, name: str) -> Iterator[tuple[Any, Any]]:
        """Offsets and values, part by part."""
        return (batch[name] for batch in self._batches)

    def take(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self._row(int(index)) for index in indices]

    def _row(self, index: int) -> dict[str, Any]:
        batch = bisect_right(self._starts, index) - 1
        place = index - self._starts[batch]
        return {name: values[offsets[place] : offsets[place + 1]] for name, (offsets, values) in self._batches[batch].items()}


def open_rows(prepared: Artifact, split: str, expected: int | None = None) -> Rows:
    """The split's Parquet as one Arrow file on this node, made by the first rank that comes, batch by batch. Raises StorageError where the
    storage shows this node other than the `expected` number of them."""
    target = cache_folder("rows") / f"{prepared.key}-{split}.arrow"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock", timeout=LOCK_TIMEOUT_S):
        if not target.exists() or (expected is not None and len(Rows(target)) != expected):
            partial = target.with_suffix(".partial")
            _write(partial, prepared.storage, prepared.storage.keys(f"encoded/{split}"))
            if expected is not None and (found := len(Rows(partial))) != expected:
                partial.unlink()
                raise StorageError(
                    f"{found} of the {expected} sequences for {split} are seen on {socket.gethostname()}.",
                    where=prepared.storage.uri,
                    remedy="All nodes have to see the same storage.",
                )
            partial.rename(target)
    return Rows(target)


def count_rows(prepared: Artifact, split: str) -> int:
    """Sequences of the split. Raises StorageError."""
    storage, rows = prepared.storage, 0
    for key in storage.keys(f"encoded/{split}"):
        filesystem, path = storage.arrow(key)
        with arrow_errors(f"{storage.uri}/{key}"), filesystem.open_input_file(path) as file:
            rows += pq.ParquetFile(file).metadata.num_rows
    return rows


def check_batch(rows: int, tokens: int, train: TrainSpec) -> None:
    """Raises UserError for a batch that a training split of so many sequences, and of so many tokens, cannot fill."""
    asked, there, what = (train.global_tokens, tokens, "tokens") if train.global_tokens else (train.global_batch, rows, "sequences")
    if there < asked:
        where = "train.global_tokens" if train.global_tokens else "train.global_batch"
        raise UserError(f"{asked} is more than the {there} {what} of the training split.", where=where, remedy="Lower it, or add data.")


def _write(target: Path, storage: Storage, keys: Sequence[str]) -> None:
    with ExitStack() as held:
        sink, writer = held.enter_context(pa.OSFile(str(target), "wb")), None
        for key in sorted(keys):
            filesystem, path = storage.arrow(key)
            with arrow_errors(f"{storage.uri}/{key}"), filesystem.open_input_file(path) as file:
                for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS):
                    lists = pa.record_batch(
                        {name: batch[name].cast(pa.large_list(batch[name].type.value_type)) for name in batch.schema.names}
                    )
                    writer = writer or held.enter_context(pa.ipc.new_file(sink, lists.schema))
                    writer.write_batch(lists)
        if writer is None:
            held.enter_context(pa.ipc.new_file(sink, pa.schema([])))


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
        global_tokens: int | None = None,
        tokens: Lengths | None = None,
    ) -> None:
        """`lengths`: what a row costs; `tokens`: what it counts for `global_tokens`, where that is less."""
        self.lengths, self.workers, self.seed, self.buckets = lengths, workers, seed, buckets
        self.micro_batch, self.micro_tokens, self.global_tokens = micro_batch, micro_tokens, global_tokens
        self.tokens = lengths if tokens is None else tokens
        if global_tokens:
            self.steps_per_epoch = math.ceil(int(self.tokens.sum()) / global_tokens)
            self.global_batch = math.ceil(len(lengths) / max(1, self.steps_per_epoch))  # rows, in the mean
        else:
            self.steps_per_epoch, self.global_batch = math.ceil(len(lengths) / global_batch), global_batch

    @classmethod
    def of(cls, train: TrainSpec, rows: Rows, workers: int, seed: int) -> Schedule:
        micro = train.micro_batch, train.micro_tokens
        return cls(rows.sizes, train.global_batch, workers, seed, *micro, train.length_buckets, train.global_tokens, rows.lengths)

    def total_steps(self, epochs: float, max_steps: int | None) -> int:
        return max_steps or max(1, math.ceil(epochs * self.steps_per_epoch))

    def step(self, step: int, rank: int) -> list[Sequence[int]]:
        """The rank's micro-batches of a step, as row indices. All ranks have the same number of them; where rows do not suffice
        (the last batch of an epoch), some are empty."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rows = self._steps(epoch)[place]
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

    def _steps(self, epoch: int) -> list[Any]:
        """The rows of each step of an epoch. With buckets, rows of like length in one step: windows of BUCKET_STEPS steps are sorted,
        then their steps shuffled. A last, smaller batch stays last."""
        if getattr(self, "_epoch", None) != epoch:
            random = np.random.default_rng([self.seed, epoch])
            order = random.permutation(len(self.lengths))
            if self.buckets:
                windows = np.split(order, range(BUCKET_STEPS * self.global_batch, len(order), BUCKET_STEPS * self.global_batch))
                order = np.concatenate([window[np.argsort(-self.lengths[window], kind="stable")] for window in windows])
            steps = np.split(order, self._ends(order))
            if self.buckets:
                whole = range(0, len(steps) - 1, BUCKET_STEPS)
                places = [random.permutation(np.arange(start, min(start + BUCKET_STEPS, len(steps) - 1))) for start in whole]
                steps = [*(steps[place] for window in places for place in window), steps[-1]]
            self._epoch, self._dealt = epoch, steps
        return self._dealt

    def _ends(self, order: Any) -> Any:
        """Where steps end in the order, but the last: after so many rows; or before the row that goes beyond another `global_tokens`, so
        that each step has as many, but for a part of a row, and every epoch as many steps."""
        if not self.global_tokens:
            return np.arange(self.global_batch, len(order), self.global_batch)
        full = self.global_tokens * np.arange(1, self.steps_per_epoch)
        return np.searchsorted(np.cumsum(self.tokens[order]), full, side="right")


def _cuts(costs: Any, most: int, most_rows: int) -> list[int]:
    """Where passes begin, each of at most `most_rows` rows and as long as rows × the longest is within `most`. `costs` fall."""
    starts, start = [], 0
    while start < len(costs):
        starts.append(start)
        start += min(most_rows, max(1, most // int(costs[start])))
    return starts

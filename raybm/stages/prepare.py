"""Files → cleaned, split, tokenised rows, with Ray Data.

Two executions. The first reads, cleans, deduplicates and splits; the second encodes, once the label set and the tokenizer
are known (in this process where one bundle holds all). Both write Parquet from their tasks, all splits in one pass, under
names that depend on the data alone, and send only counts and bad rows back. The unit of work is a part of about PART_BYTES,
cut by the files' sizes and contents and never by the number of CPUs, so the result is the same on every machine; a small job
is one part and needs no shuffle.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from raybm.core.artifact import Artifact
from raybm.core.context import Context
from raybm.core.errors import DataError
from raybm.core.spec import Spec
from raybm.core.storage import Storage
from raybm.data.cleaning import Plan, Unit, read, regroup, write_parquet
from raybm.data.execution import batches, from_items
from raybm.data.files import File, expand, state
from raybm.data.frame import ORDER, texts
from raybm.data.reading import Wanted
from raybm.models import processors
from raybm.models.references import fingerprint
from raybm.models.spec import ModelInput
from raybm.spec.job import DataSpec
from raybm.tasks import TaskSpec

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "prepare"
INPUTS: tuple[str, ...] = ()
CODE = ("core", "models", "data", "tasks", "stages/prepare.py")
ON_RAY = True

PART_BYTES = 16 << 20
"""Of input text that one task holds at a time."""
MOST_PARTITIONS = 2048  # in which parts meet: each of them and of the tasks before it gives the driver an object
MAX_BAD_KEPT = 100_000
"""Bad rows in bad_rows.jsonl; all are counted."""
PROGRESS_EVERY_S = 5.0

T = TypeVar("T")


class View(Spec):
    seed: int
    task: TaskSpec
    model: ModelInput
    data: DataSpec


def outside(view: View) -> str:
    """Digest of the files and the model that the view names, as they are now: what its text alone does not say.
    Raises NotFound, StorageError."""
    found = [each for source in view.data.sources for each in state(source.path)]
    return hashlib.sha256(json.dumps([found, fingerprint(view.model.ref)]).encode()).hexdigest()[:20]


@dataclass
class Tally:
    """What the tasks reported, added up."""

    read: int = 0
    bad: list[list[Any]] = field(default_factory=list)
    bad_count: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    units: list[Unit] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)

    def add(self, report: Mapping[str, Any]) -> None:
        self.read += report.get("read", 0)
        self.bad += report.get("bad", [])[: MAX_BAD_KEPT - len(self.bad)]
        self.bad_count += report.get("bad_count", 0)
        for name in ("dropped", "rows", "tokens", "labels"):
            getattr(self, name).update(report.get(name, {}))
        self.units += [Unit(**unit) for unit in report.get("units", [])]
        self.files += report.get("files", [])


def run(view: View, inputs: Mapping[str, Artifact], out: Artifact, context: Context) -> dict[str, Any]:
    """Raises DataError for data of no use, NotFound for missing files or models, DeadlineExceeded where Ray places no task."""
    import pyarrow as pa

    storage = out.storage
    for leftover in ("staged", "rows", "encoded", "processor"):
        storage.delete(leftover)
    files = [expand(source.path) for source in view.data.sources]
    tally = _clean(view, files, storage, context)
    _check(view, storage, tally)
    task = view.task.build()
    labels = task.labels(sorted(tally.labels))
    processor = processors.build(view.task.INPUT, view.model, context.storage, lambda: _texts(storage))
    config = task.learn(processor, lambda: _rows(storage))
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        storage.upload(Path(folder), "processor")
    units = sorted(tally.units, key=lambda unit: (unit.split, unit.name))
    tally.rows, tally.units = Counter(), []
    bundles = [[asdict(unit) for unit in bundle] for bundle in _bundles(units, lambda unit: unit.chars)]
    encode = partial(_encode, spec=view.task, processor=processor, labels=labels, max_length=view.model.max_length, storage=storage)
    if len(bundles) == 1:  # starting a worker (torch, transformers: 6 s) would take longer than the work
        for report in encode(pa.table({"item": [json.dumps(bundles[0])]})):
            tally.add(json.loads(report["report"][0].as_py()))
    else:
        _execute(bundles, [encode], 1, context, tally, lambda: f"{sum(tally.rows.values()):,} rows tokenised")
    _check(view, storage, tally)
    storage.delete("staged")
    context.progress(f"prepare: {sum(tally.tokens.values()):,} tokens" + (f", {len(labels)} labels" if labels else ""))
    made = {
        "labels": list(labels),
        "config": config,
        "rows": dict(sorted(tally.rows.items())),
        "tokens": dict(sorted(tally.tokens.items())),
        "dropped": dict(sorted(tally.dropped.items())),
        "bad": tally.bad_count,
        "read": tally.read,
        "sources": _in_order(tally.files, files),
    }
    storage.write("dataset.json", (json.dumps(made, indent=2, ensure_ascii=False) + "\n").encode())
    return made


# ---- first execution: read, clean, split


def _clean(view: View, files: Sequence[tuple[File, ...]], storage: Storage, context: Context) -> Tally:
    from raybm.tasks.protocol import Task

    steps = view.data.steps
    listed = [(number, index) for number, found in enumerate(files) for index in range(len(found))]
    bundles = _bundles(listed, lambda place: _text_bytes(files[place[0]][place[1]]))
    size = sum(_text_bytes(file) for found in files for file in found)
    parts = -(-size // PART_BYTES) or 1
    # With one part everything meets anyway; with more, a grouped step begins a new segment, before which equal rows are brought together.
    edges = [0, *(place for place, step in enumerate(steps) if step.GROUPED and parts > 1), len(steps)]
    plan = Plan(
        sources=view.data.sources,
        files=tuple(files),
        segments=tuple(steps[start:end] for start, end in pairwise(edges)),
        wanted=Wanted(
            extra=tuple(sorted({*view.data.split.by, *(name for step in steps for name in step.needs())})),
            groups=view.task.columns(),
            produced=tuple(name for step in steps for name in step.PRODUCES),
        ),
        validation=view.data.split.validation,
        test=view.data.split.test,
        by=view.data.split.by,
        seed=view.seed,
        parts=parts,
        part_chars=PART_BYTES,
        storage=storage,
        labels=type(view.task.build()).labels is not Task.labels,
    )
    stages = [partial(read, plan=plan), *(partial(regroup, plan=plan, segment=i) for i in range(1, len(plan.segments)))]
    tally = Tally()
    context.progress(f"prepare: {len(listed)} file(s), {size / 1e6:,.1f} MB of text")
    _execute(list(enumerate(bundles)), stages, parts, context, tally, lambda: f"{tally.read:,} rows read")
    counts = ", ".join(f"{count:,} {split}" for split, count in sorted(tally.rows.items())) or "none kept"
    dropped = "".join(f", {count:,} dropped by {name}" for name, count in sorted(tally.dropped.items()))
    context.progress(f"prepare: {tally.read:,} rows read: {counts}{dropped}, {tally.bad_count:,} bad")
    return tally


def _text_bytes(file: File) -> int:
    return file.bytes * 4 if file.path.endswith(".gz") else file.bytes


def _bundles(items: Sequence[T], size: Callable[[T], int]) -> list[list[T]]:
    """Neighbours together, up to about PART_BYTES."""
    bundles: list[list[T]] = []
    room = 0
    for item in items:
        if not bundles or size(item) > room:
            bundles.append([])
            room = PART_BYTES
        bundles[-1].append(item)
        room -= size(item)
    return bundles


# ---- second execution: encode


def _encode(
    table: pa.Table, spec: TaskSpec, processor: Any, labels: Sequence[str], max_length: int, storage: Storage
) -> Iterator[pa.Table]:
    """Bundles of staged files → rows/ without what cannot be encoded, encoded/, and a report for each."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # "sequence longer than the model's maximum": the task cuts it afterwards
    task = spec.build()
    for item in table.column("item").to_pylist():
        for unit in json.loads(item):
            split, key = unit["split"], f"{unit['split']}/{unit['name']}.parquet"
            staged = pq.read_table(pa.BufferReader(storage.read(f"staged/{key}")))
            rows = staged.to_pylist()
            made = task.encode(rows, processor, labels, max_length)
            reasons = {place: row["_bad"] for place, row in enumerate(made) if "_bad" in row}
            encoded = task.pack([row for row in made if "_bad" not in row], max_length)
            places_kept = pa.array([place for place in range(len(rows)) if place not in reasons], pa.int64())
            kept = staged.take(places_kept).drop_columns([*ORDER, "_bad", "_drop"])
            if len(kept):
                write_parquet(kept, storage, f"rows/{key}")
            if encoded:
                write_parquet(_numbers(encoded), storage, f"encoded/{key}")
            bad = [[*(rows[place][name] for name in (*ORDER, "_file", "_line")), reason] for place, reason in sorted(reasons.items())]
            tokens = sum(len(row.get("input_ids", ())) for row in encoded)
            report = {"rows": {split: len(kept)}, "tokens": {split: tokens}, "bad": bad, "bad_count": len(bad)}
            yield pa.table({"report": [json.dumps(report)]})


def _numbers(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Encoded rows as lists of int32, float32 or uint8, as their columns hold ints, floats or arrays of bytes."""
    import pyarrow as pa

    columns = {}
    for name in rows[0]:
        column = pa.array([row[name] for row in rows])
        kind = column.type.value_type
        columns[name] = column.cast(pa.list_(pa.float32() if pa.types.is_floating(kind) else kind if kind == pa.uint8() else pa.int32()))
    return pa.table(columns)


def _texts(storage: Storage) -> Iterator[str]:
    """The training split's text, in order."""
    for row in _rows(storage):
        yield from texts(row)


def _rows(storage: Storage) -> Iterator[dict[str, Any]]:
    """The training split, in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for key in storage.keys("staged/train"):
        for batch in pq.ParquetFile(pa.BufferReader(storage.read(key))).iter_batches(1000):
            yield from batch.to_pylist()


# ---- Ray Data


def _execute(
    items: Sequence[Any], stages: Sequence[Callable[..., Any]], parts: int, context: Context, tally: Tally, progress: Callable[[], str]
) -> None:
    """One streaming execution: every item a block, rows regrouped by `_part` between stages, the last stage's reports into the tally."""
    if not items:
        return
    told = time.monotonic()
    data = from_items(items)
    for number, stage in enumerate(stages):
        if number:
            data = data.repartition(min(parts, MOST_PARTITIONS), keys=["_part"])
        data = data.map_batches(stage, batch_size=None, batch_format="pyarrow")
    for batch in batches(data, NAME, PART_BYTES if len(stages) > 1 else 1):  # reports alone: one by one
        for report in batch.column("report").to_pylist():
            tally.add(json.loads(report))
        if time.monotonic() - told > PROGRESS_EVERY_S:
            told = time.monotonic()
            context.progress(f"prepare: {progress()}")


# ---- what came out


def _check(view: View, storage: Storage, tally: Tally) -> None:
    """Keeps bad_rows.jsonl. Raises DataError for too many bad rows, or a split without any."""
    bad = sorted(tally.bad)
    lines = [json.dumps({"file": file, "line": line, "reason": reason}, ensure_ascii=False) for *_, file, line, reason in bad]
    storage.write("bad_rows.jsonl", "".join(f"{line}\n" for line in lines).encode())
    share = tally.bad_count / tally.read if tally.read else 0.0
    if share > view.data.max_bad_share:
        examples = "; ".join(f"{file}:{line}: {reason}" for *_, file, line, reason in bad[:3])
        raise DataError(
            f"{tally.bad_count:,} of {tally.read:,} rows ({share:.1%}) cannot be used, and data.max_bad_share is "
            f"{view.data.max_bad_share:.1%}. {examples}.",
            where="data",
            remedy=f"All of them are in {storage.uri}/bad_rows.jsonl. Mend the files or the columns, or raise data.max_bad_share.",
        )
    if not tally.read:
        raise DataError("the files hold no rows.", where="data.sources", remedy="Check the paths and the kinds.")
    counts = ", ".join(f"{split} {count:,}" for split, count in sorted(tally.rows.items())) or "none"
    dropped = "".join(f"; {name} dropped {count:,}" for name, count in sorted(tally.dropped.items()))
    dealt = any(not source.split and not source.slice for source in view.data.sources)
    wanted = ["train", *(name for name in ("validation", "test") if dealt and getattr(view.data.split, name))]
    for split in wanted:
        if not tally.rows[split]:
            remedy = "Give a source that is dealt out or has `split: train`, or check the steps."
            if split != "train":
                remedy = f"Raise data.split.{split}, set it to 0, give it a source of its own (`split: {split}`), or bring more rows."
            raise DataError(f"no row came into the {split} split (rows: {counts}{dropped}).", where="data.split", remedy=remedy)


def _in_order(told: Sequence[dict[str, Any]], files: Sequence[Sequence[File]]) -> list[dict[str, Any]]:
    """Facts of each file, once, in the order of the sources."""
    by_path = {fact["path"]: fact for fact in told}
    return [by_path[path] for path in dict.fromkeys(file.path for found in files for file in found) if path in by_path]

"""What a data task does to the rows it holds: read, run the steps, split, write Parquet, report counts.

Every function depends on the files and the plan alone, so a task that is done again writes the same files again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from raybm.core.storage import Storage
from raybm.data.files import File
from raybm.data.frame import ORDER, content, digests, joined, schema, shares
from raybm.data.reading import Facts, Wanted, framed, records
from raybm.data.source import Source
from raybm.data.step import Step

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MAX_BAD_REPORTED = 10_000  # bad rows told one by one, of one part; all are counted


@dataclass(frozen=True)
class Plan:
    """How the rows of a job are cleaned. `parts` > 1: rows with equal keys are brought together before a grouped step."""

    sources: tuple[Source, ...]
    files: tuple[tuple[File, ...], ...]
    """Of each source."""
    segments: tuple[tuple[Step, ...], ...]
    """The steps; every segment but the first begins with a grouped one, for which the rows are brought together."""
    wanted: Wanted
    validation: float
    test: float
    by: tuple[str, ...]
    """Columns that decide which split a row is dealt to; none: its content."""
    seed: int
    parts: int
    part_chars: int
    storage: Storage
    labels: bool = True
    """Whether somebody wants to know which there are."""


@dataclass(frozen=True)
class Unit:
    """A file of cleaned rows of one split."""

    split: str
    name: str
    chars: int


def read(table: pa.Table, plan: Plan) -> Iterator[pa.Table]:
    """Bundles of files, as JSON in column `item` ([bundle, [[source, index], ...]]) → reports, or where more segments follow,
    rows with `_part` for them."""
    import pandas as pd

    for item in table.column("item").to_pylist():
        bundle, files = json.loads(item)
        facts: list[Facts] = []
        made: Any = _read_all(files, plan, facts)
        if plan.parts == 1:
            found = list(made)
            made = iter([pd.concat(found, ignore_index=True)] if found else [])
        for part, frame in enumerate(made):
            if len(plan.segments) > 1:
                grouped = plan.segments[1][0]
                yield _to_shuffle(_run(frame, (*plan.segments[0], grouped)), plan, grouped)
            else:
                cleaned = _run(frame, plan.segments[0])
                yield _report(_finish(cleaned, f"{bundle:05d}-{part:05d}", plan))
        told = [asdict(fact) for fact in facts]
        yield _facts_to_shuffle(told, plan) if len(plan.segments) > 1 else _report({"files": told})


def regroup(table: pa.Table, plan: Plan, segment: int) -> Iterator[pa.Table]:
    """Rows of whole parts → reports, or rows with `_part` for the next segment."""
    told = [json.loads(facts) for facts in table.column("_facts").to_pylist() if facts is not None]
    last = segment == len(plan.segments) - 1
    frame = _from_shuffle(table, plan)
    for part, rows in frame.groupby("_part", sort=True):
        cleaned = _run(rows.drop(columns="_part").sort_values(ORDER, ignore_index=True), plan.segments[segment])
        if last:
            yield _report(_finish(cleaned, f"{part:05d}", plan))
        else:
            yield _to_shuffle(cleaned, plan, plan.segments[segment + 1][0])
    if told:
        yield _report({"files": told}) if last else _facts_to_shuffle(told, plan)


def _read_all(files: Sequence[Sequence[int]], plan: Plan, facts: list[Facts]) -> Iterator[pd.DataFrame]:
    rows = (row for number, index in files for row in records(plan.sources[number], number, index, plan.files[number][index], plan.wanted))
    for made in framed(rows, plan.wanted, plan.part_chars):
        if isinstance(made, Facts):
            facts.append(made)
        else:
            yield made


def _run(frame: pd.DataFrame, steps: Sequence[Step]) -> pd.DataFrame:
    """All rows; those set aside stand at the end."""
    import pandas as pd

    aside = []
    for step in steps:
        live = (frame["_bad"] == "") & (frame["_drop"] == "")
        aside.append(frame[~live])
        frame = frame[live]
        if len(frame):
            frame = step.apply(frame)
    return pd.concat([frame, *(rows for rows in aside if len(rows))], ignore_index=True)


def _finish(frame: pd.DataFrame, name: str, plan: Plan) -> dict[str, Any]:
    """Check, split and write the rows of one part. Returns the report."""
    live = (frame["_bad"] == "") & (frame["_drop"] == "")
    rows = frame[live].sort_values(ORDER, ignore_index=True)
    rows = rows.assign(_bad=_unusable(rows, plan.wanted, plan.by))
    bad = _sorted_bad(frame[frame["_bad"] != ""], rows[rows["_bad"] != ""])
    rows = rows[rows["_bad"] == ""]
    report: dict[str, Any] = {
        "read": len(frame),
        "bad_count": len(bad),
        "bad": bad[:MAX_BAD_REPORTED],
        "dropped": Counter(frame.loc[frame["_drop"] != "", "_drop"].tolist()),
        "rows": {},
        "units": [],
    }
    splits = _splits(rows, plan)
    columns = plan.wanted.columns
    for split in sorted(set(splits)):
        chosen = rows[splits == split]
        write_parquet(_arrow(chosen, schema(columns, inner=True)), plan.storage, f"staged/{split}/{name}.parquet")
        report["rows"][split] = len(chosen)
        report["units"].append(asdict(Unit(split, name, int(content(chosen).str.len().sum()))))
        if split == "train" and plan.labels:
            report["labels"] = _labels(chosen)
    return report


def _labels(rows: pd.DataFrame) -> Counter[str]:
    """Of every label, how often it stands in `label`, `labels` or `tags`."""
    counted: Counter[str] = Counter()
    for name in ("label", "labels", "tags"):
        if name in rows:
            for value in rows[name].tolist():
                counted.update([value] if isinstance(value, str) else value or [])
    return counted


def _unusable(rows: pd.DataFrame, wanted: Wanted, by: Sequence[str]) -> Any:
    """Why a row cannot be used, or "": every group of columns lacks something, or one of the columns `by` which it is dealt to a split. A
    str a row."""
    reasons = _lacking(rows, wanted)
    for name in by:
        there = rows[name].map(_filled).astype(bool) if name in rows else False
        reasons = reasons.mask((reasons == "") & ~there, f"{name}, which decides its split, is missing or empty")
    return reasons


def _lacking(rows: pd.DataFrame, wanted: Wanted) -> Any:
    import pandas as pd

    filled = {name: rows[name].map(_filled).astype(bool) for group in wanted.groups for name in group}
    usable = pd.Series(False, index=rows.index)
    for group in wanted.groups:
        complete = pd.Series(True, index=rows.index)
        for name in group:
            complete &= filled[name]
        usable |= complete
    if len(wanted.groups) > 1:
        needed = " nor ".join(" + ".join(group) for group in wanted.groups)
        return usable.map({True: "", False: f"neither {needed} is there"})
    lacks = pd.Series("", index=rows.index, dtype=object)
    for name in reversed(wanted.groups[0]):
        lacks[~filled[name]] = f"{name} is missing or empty"
    return lacks


def _filled(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value is not None


def _splits(rows: pd.DataFrame, plan: Plan) -> Any:
    """Name of the split of each row: the source's own, or by the digest of the content (or of the columns that decide)."""
    import numpy as np

    place = shares(joined(rows, plan.by) if plan.by else content(rows), f"split:{plan.seed}")
    dealt = np.select([place < plan.test, place < plan.test + plan.validation], ["test", "validation"], "train").astype(object)
    for number, source in enumerate(plan.sources):
        if name := f"slice-{source.slice}" if source.slice else source.split:
            dealt[(rows["_source"] == number).to_numpy()] = name
    return dealt


def _sorted_bad(*frames: pd.DataFrame) -> list[list[Any]]:
    """[source, index, row, file, line, reason] of each bad row."""
    columns = [*ORDER, "_file", "_line", "_bad"]
    return sorted(row for frame in frames for row in frame[columns].astype(object).to_numpy().tolist())


# ---- tables that travel


def write_parquet(table: pa.Table, storage: Storage, key: str) -> None:
    import pyarrow.parquet as pq

    buffer = BytesIO()
    pq.write_table(table, buffer)
    storage.write(key, buffer.getvalue())


def _report(report: dict[str, Any]) -> pa.Table:
    import pyarrow as pa

    return pa.table({"report": [json.dumps(report)]})


def _arrow(frame: pd.DataFrame, types: pa.Schema) -> pa.Table:
    import pyarrow as pa

    return pa.table([pa.array(frame[field.name].tolist(), field.type) for field in types], schema=types)


def _shuffled_schema(plan: Plan) -> pa.Schema:
    import pyarrow as pa

    return schema(plan.wanted.columns, inner=True).append(pa.field("_part", pa.int64())).append(pa.field("_facts", pa.string()))


def _to_shuffle(frame: pd.DataFrame, plan: Plan, step: Step) -> pa.Table:
    """Rows with the part in which those of equal key meet; of rows set aside only where they stand."""
    import numpy as np

    frame = frame.assign(_facts=None, _part=(digests(step.key(frame), "part") % np.uint64(plan.parts)).astype("int64"))
    frame.loc[(frame["_bad"] != "") | (frame["_drop"] != ""), list(plan.wanted.columns)] = None
    return _arrow(frame, _shuffled_schema(plan))


def _facts_to_shuffle(told: list[dict[str, Any]], plan: Plan) -> pa.Table:
    import pyarrow as pa

    types = _shuffled_schema(plan)
    rows = [dict.fromkeys(types.names) | {"_facts": json.dumps(fact), "_part": i % plan.parts} for i, fact in enumerate(told)]
    return pa.Table.from_pylist(rows, types)


def _from_shuffle(table: pa.Table, plan: Plan) -> pd.DataFrame:
    import pandas as pd

    types = _shuffled_schema(plan)
    table = table.filter(table.column("_facts").is_null())
    numbers = {"_source", "_index", "_row", "_line", "_part"}
    columns = {
        name: pd.Series(table.column(name).to_pylist(), dtype="int64" if name in numbers else object)
        for name in types.names
        if name != "_facts"
    }
    return pd.DataFrame(columns)

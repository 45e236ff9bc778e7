"""Reading, deduplicating and splitting do not depend on how the work is dealt out."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa

from raybm.core.storage import open_storage
from raybm.data import ExactDedup, Jsonl, Normalize
from raybm.data.cleaning import Plan, read, regroup
from raybm.data.files import expand
from raybm.data.reading import Wanted


def sources(tmp_path: Path) -> tuple[Jsonl, ...]:
    rng = random.Random(1)
    for name in ("a", "b", "c"):
        rows = [{"text": f" text  {rng.randrange(300)}", "label": rng.choice("xyz")} for _ in range(400)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "oops\n")
    return tuple(Jsonl(path=f"{tmp_path}/{name}.jsonl", slice=name if name == "c" else None) for name in "abc")


def clean(tmp_path: Path, parts: int, order: int) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Digests of the files written, and the reports; tasks run in a random order over randomly cut blocks of whole parts."""
    rng, out = random.Random(order), tmp_path / f"out-{parts}-{order}"
    given = sources(tmp_path)
    segments = ((Normalize(), ExactDedup()),) if parts == 1 else ((Normalize(),), (ExactDedup(),))
    plan = Plan(
        given,
        tuple(expand(source.path) for source in given),
        segments,
        Wanted((("text", "label"),)),
        0.1,
        0.2,
        (),
        7,
        parts,
        4000,
        open_storage(str(out)),
    )
    files = [(number, 0) for number in range(len(given))]
    items = [json.dumps([0, files])] if parts == 1 else [json.dumps([i, [file]]) for i, file in enumerate(files)]
    rng.shuffle(items)
    tables = [table for item in items for table in read(pa.table({"item": [item]}), plan)]
    if parts > 1:
        rng.shuffle(tables)
        everything = pa.concat_tables(tables)
        cuts = {part: rng.randrange(3) for part in range(parts)}
        marks = pa.array([cuts[part] for part in everything.column("_part").to_pylist()])
        blocks = [everything.filter(pa.compute.equal(marks, mark)) for mark in range(3)]
        tables = [table for block in blocks if len(block) for table in regroup(block, plan, 1)]
    reports = [json.loads(table.column("report")[0].as_py()) for table in tables]
    written = {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in out.rglob("*.parquet")}
    return written, reports


def total(reports: list[dict[str, Any]], name: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for report in reports:
        for key, count in report.get(name, {}).items():
            found[key] = found.get(key, 0) + count
    return found


def test_files_are_equal_bit_for_bit_however_tasks_and_blocks_fall(tmp_path: Path) -> None:
    first, *others = [clean(tmp_path, 5, order)[0] for order in range(3)]
    assert len(first) > 10 and all(other == first for other in others)


def test_shuffled_and_unshuffled_work_agree(tmp_path: Path) -> None:
    (_, one), (_, many) = clean(tmp_path, 1, 0), clean(tmp_path, 5, 0)
    for name in ("rows", "labels", "dropped"):
        assert total(one, name) == total(many, name)
    for reports in (one, many):
        assert sum(report.get("read", 0) for report in reports) == 1203
        assert sum(report.get("bad_count", 0) for report in reports) == 3
        facts = [fact for report in reports for fact in report.get("files", [])]
        assert sorted(Path(fact["path"]).name for fact in facts) == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_the_first_of_equal_rows_wins_over_sources(tmp_path: Path) -> None:
    _, reports = clean(tmp_path, 1, 0)
    rows = total(reports, "rows")
    assert sum(rows.values()) <= 300 and rows.get("slice-c", 0) < 20  # nearly all texts stand in a and b already

"""From files to frames of rows in standard columns. What every format shares: the mapping of columns, the strings, the bad rows."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from raybm.core.errors import DataError
from raybm.data.files import File, open_file
from raybm.data.frame import LISTS
from raybm.data.source import Row, Source
from raybm.models.chat import ROLES

if TYPE_CHECKING:
    import pandas as pd

PROBE = 1000  # rows after which a column that none of them had is missing
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Wanted:
    """Which columns a job reads: groups of them that make a row usable (one is enough), and what steps need or make beside them."""

    groups: tuple[tuple[str, ...], ...]
    extra: tuple[str, ...] = ()
    produced: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*chain.from_iterable(self.groups), *self.extra, *self.produced)))


@dataclass(frozen=True)
class Facts:
    """What a file was when it was read."""

    path: str
    sha256: str
    bytes: int
    rows: int


def frames(source: Source, number: int, index: int, file: File, wanted: Wanted, max_chars: int) -> Iterator[pd.DataFrame | Facts]:
    """The rows of file `index` of source `number` in frames of at most about `max_chars` characters, then the file's facts.
    Bad rows are in the frames, with `_bad` set. Raises DataError naming file and line where the whole file is of no use."""
    return framed(records(source, number, index, file, wanted), wanted, max_chars)


def records(source: Source, number: int, index: int, file: File, wanted: Wanted) -> Iterator[dict[str, Any] | Facts]:
    """The rows of `frames`, one by one, then the file's facts."""
    count = 0
    with open_file(file, source.BINARY) as opened:
        for count, row in enumerate(_rows(source, file, opened.stream, wanted), start=1):
            yield {"_source": number, "_index": index, "_row": count, "_file": file.path, "_drop": "", **row}
        facts = Facts(file.path, opened.sha256(), file.bytes, count)
    yield facts


def framed(made: Iterable[dict[str, Any] | Facts], wanted: Wanted, max_chars: int) -> Iterator[pd.DataFrame | Facts]:
    """Rows of one file or several in frames of at most about `max_chars` characters, then all facts. A frame costs milliseconds: files
    of one row, such as pictures, share one."""
    rows: list[dict[str, Any]] = []
    facts: list[Facts] = []
    chars = 0
    for one in made:
        if isinstance(one, Facts):
            facts.append(one)
            continue
        rows.append(one)
        chars += sum(len(value) for value in one.values() if isinstance(value, str)) - len(one["_file"]) + 8
        if chars >= max_chars:
            yield _frame(rows, wanted)
            rows, chars = [], 0
    if rows:
        yield _frame(rows, wanted)
    yield from facts


def _frame(rows: list[dict[str, Any]], wanted: Wanted) -> pd.DataFrame:
    import pandas as pd

    columns = {name: pd.Series([row.get(name) for row in rows], dtype=object) for name in (*wanted.columns, "_file", "_bad", "_drop")}
    order = {name: pd.Series([row[name] for row in rows], dtype="int64") for name in ("_source", "_index", "_row", "_line")}
    return pd.DataFrame(columns | order)


def _rows(source: Source, file: File, stream: Any, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Rows in standard columns with `_line` and `_bad`."""
    names: Mapping[str, str | int] = {name: name for name in wanted.columns} | source.columns
    names = {name: column for name, column in names.items() if name in wanted.columns}
    held: list[dict[str, Any]] = []  # until it is sure that the columns are there
    seen: dict[Any, None] = {}
    read = 0
    probing = True
    try:
        for line, row in source.rows(stream):
            if isinstance(row, str):
                made: dict[str, Any] = {"_bad": row if not SURROGATE.search(row) else "not UTF-8"}
            else:
                read += 1
                if read <= PROBE:
                    seen |= dict.fromkeys(row)
                if read == 1:
                    names = _without_positions(names, list(row), file)
                made = _standard(row, names)
            made["_line"] = line
            held.append(made)
            if probing and read < PROBE:
                continue
            if probing:
                _check_columns(source, file, seen, names, wanted)
                probing = False
            yield from held
            held = []
    except DataError as error:
        if error.where.startswith("line "):
            error = DataError(error.what, where=f"{file.path}:{error.where.removeprefix('line ')}", remedy=error.remedy)
        raise DataError(error.what, where=error.where or file.path, remedy=error.remedy) from None
    if read and probing:
        _check_columns(source, file, seen, names, wanted)
    yield from held


def _without_positions(names: Mapping[str, str | int], columns: Sequence[Any], file: File) -> dict[str, Any]:
    for name, column in names.items():
        if isinstance(column, int) and not 0 <= column < len(columns):
            raise DataError(
                f"`columns` maps {name} to position {column}, and there are {len(columns)} columns.",
                where=file.path,
                remedy=f"Positions go from 0 to {len(columns) - 1}; is the delimiter right?",
            )
    return {name: columns[column] if isinstance(column, int) else column for name, column in names.items()}


def _check_columns(source: Source, file: File, seen: Mapping[Any, None], names: Mapping[str, Any], wanted: Wanted) -> None:
    has = ", ".join(str(column)[:40] for column in seen)
    hint = " If its first line is data, set `header: false` and map positions." if getattr(source, "header", False) else ""
    for name in source.columns:
        column = names.get(name, source.columns[name])
        if column not in seen and not isinstance(column, int):
            near = difflib.get_close_matches(str(column), [str(c) for c in seen], n=1, cutoff=0.5)
            guess = f"Did you mean {near[0]!r}?" if near else f"Map {name} to one of these."
            raise DataError(f"there is no column {column!r}; the file has {has}.", where=file.path, remedy=guess + hint)
    there = {name for name, column in names.items() if column in seen} | set(wanted.produced)
    if not any(there.issuperset(group) for group in wanted.groups):
        needed = " or ".join(" + ".join(group) for group in wanted.groups)
        missing = next(name for name in wanted.groups[0] if name not in there)
        remedy = f"Map them, as in `columns: {{{missing}: {next(iter(seen))!s:.40}}}`."
        raise DataError(f"the task needs {needed}, and the file has {has}.", where=file.path, remedy=remedy + hint)


def _standard(row: Row, names: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"_bad": ""}
    for name, column in names.items():
        value = row.get(column)
        if value is None or value != value:  # NaN, which pandas writes for what is missing
            continue
        value, reason = _messages(value) if name == "messages" else _strings(value) if name in LISTS else _string(value)
        if reason:
            return {"_bad": f"{column}: {reason}"}
        made[name] = value
    return made


def _string(value: Any) -> tuple[str | None, str]:
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, int | float):
        value = str(value)
    elif not isinstance(value, str):
        return None, f"a {type(value).__name__} instead of text"
    return (None, "not UTF-8") if SURROGATE.search(value) else (value, "")


def _strings(value: Any) -> tuple[list[str] | None, str]:
    if isinstance(value, str):  # a JSON list in a CSV cell
        try:
            value = json.loads(value)
        except ValueError:
            return None, "not a list"
    if not isinstance(value, list):
        return None, "not a list"
    made = [_string(part) for part in value]
    reason = next((reason for _, reason in made if reason), "")
    return (None, reason) if reason else ([str(part) for part, _ in made], "")


def _messages(value: Any) -> tuple[list[dict[str, str]] | None, str]:
    if isinstance(value, str):  # a JSON list in a CSV cell
        try:
            value = json.loads(value)
        except ValueError:
            return None, "not a list of messages"
    if not isinstance(value, list) or not value:
        return None, "not a list of messages"
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return None, 'a message is not {"role": ..., "content": text}'
        if message.get("role") not in ROLES:
            return None, f"role {str(message.get('role'))[:20]!r} is none of {', '.join(ROLES)}"
        if SURROGATE.search(message["content"]):
            return None, "not UTF-8"
    return [{"role": message["role"], "content": message["content"]} for message in value], ""

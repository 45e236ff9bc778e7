"""What the readers share: where files lie, which column is which, and the shape of what they yield."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raybm.core.spec import Check, Spec

Row = dict[Any, Any]


class Source(Spec):
    """Files of one format. Members of the family implement `rows`."""

    path: Annotated[str, Field(min_length=1)]
    """A file, a glob, `s3://bucket/prefix/*.jsonl`, or `package:NAME/inside/*.txt` for files of an installed Python package.
    UTF-8; what ends in `.gz` is unpacked."""
    columns: dict[str, str | int] = {}
    """Standard name (`text`, `label`, `messages`, `prompt`, `completion`) or one that a step asks for → the file's column name,
    or its 0-based position."""
    split: Literal["train", "validation", "test"] | None = None
    """Put all rows into this split. Default: dealt out by `data.split`."""
    slice: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """Name of an extra test slice: evaluated apart from the test split (out-of-domain data, a language, a group)."""

    BINARY: ClassVar[bool] = False
    """Whether `rows` gets bytes instead of text."""
    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(
            ("split", "slice"),
            lambda split, name: (f"{split!r} and slice {name!r} exclude each other.", "Keep one.") if split and name else None,
        ),
        Check(("columns",), lambda columns: _names(columns)),
        Check(("columns", "kind"), lambda columns, kind: _positions(columns, kind)),
    )

    def rows(self, stream: Any) -> Iterator[tuple[int, Row | str]]:
        """Yields (1-based line, row by the file's own column names or positions), or (line, reason) for a row that cannot be
        read; raises DataError where the file as a whole cannot. Line ends arrive as they are in the file; the
        stream's `name` is the file's path. Knows nothing of mapping or splits; `raybm.data.reading` does that for every format."""
        raise TypeError(f"{type(self).__name__} reads nothing")


def _names(columns: dict[str, str | int]) -> tuple[str, str] | None:
    wrong = [name for name in columns if not name.isidentifier() or name.startswith("_")]
    return (f"{wrong[0]!r} is no column name.", "Use letters, digits and underscores, not starting with one.") if wrong else None


def _positions(columns: dict[str, str | int], kind: str) -> tuple[str, str] | None:
    if kind not in ("csv", "tsv") and any(isinstance(column, int) for column in columns.values()):
        return f"columns of {kind} have names, not positions.", "Give the file's own names."
    return None

"""What the readers share: where files lie, which column is which, and the shape of what they yield."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TextIO

from raybm.core.spec import Spec


class Source(Spec):
    """Files of one format. Members of the family implement `rows`."""

    path: str
    """A file, a glob, `s3://bucket/prefix/*.jsonl`, or `package:NAME/inside/*.txt` for files of an installed Python package."""
    columns: dict[str, str | int] = {}
    """Standard name (`text`, `label`, `messages`, `prompt`, `completion`) → the file's column name, or its 0-based position."""
    split: Literal["train", "validation", "test"] | None = None
    """Put all rows into this split. Default: dealt out by `data.split`."""
    slice: str | None = None
    """Name of an extra test slice: evaluated apart from the test split (out-of-domain data, a language, a group)."""

    def rows(self, stream: TextIO) -> Iterator[tuple[int, dict[str, Any] | str]]:
        """Yields (1-based line, row by the file's own column names), or (line, reason) for a row that cannot be read.
        Knows nothing of paths, mapping or splits; `raybm.data.reading` does that for every format."""
        raise TypeError(f"{type(self).__name__} reads nothing")

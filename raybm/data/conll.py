"""CoNLL's columns: a token and its tag a line, a blank line between sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, TextIO

from pydantic import Field

from raybm.data.source import Row, Source

DOCUMENT = "-DOCSTART-"


class Conll(Source):
    """One token a line with its tag in a column of its own (CoNLL 2002, 2003 and their like); blank lines part sentences. The columns are
    `tokens` and `tags`. Lines that begin with -DOCSTART- are no tokens."""

    kind: Literal["conll"] = "conll"
    token: int = 0
    """Position of the token among a line's columns, from 0."""
    tag: int = -1
    """Position of the tag; negative ones count from the end."""
    delimiter: Annotated[str, Field(min_length=1)] | None = None
    """What stands between two columns. Default: white space."""

    def rows(self, stream: TextIO) -> Iterator[tuple[int, Row | str]]:
        tokens: list[str] = []
        tags: list[str] = []
        start, wrong = 0, ""
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                if tokens or wrong:
                    yield start, wrong or {"tokens": tokens, "tags": tags}
                tokens, tags, start, wrong = [], [], 0, ""
                continue
            if line.startswith(DOCUMENT):
                continue
            start = start or number
            columns = line.rstrip("\r\n").split(self.delimiter)
            try:
                token, tag = columns[self.token], columns[self.tag]
            except IndexError:
                wrong = wrong or f"line {number} has {len(columns)} column(s)"
                continue
            tokens.append(token)
            tags.append(tag)
        if tokens or wrong:
            yield start, wrong or {"tokens": tokens, "tags": tags}

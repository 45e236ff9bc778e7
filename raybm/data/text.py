"""Plain text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TextIO

from raybm.data.source import Row, Source


class Text(Source):
    """Plain text: a row a line, a paragraph (blank lines between), or a file; the column is `text`. Blank lines are no rows."""

    kind: Literal["text"] = "text"
    unit: Literal["line", "paragraph", "file"] = "paragraph"
    """What one row is."""

    def rows(self, stream: TextIO) -> Iterator[tuple[int, Row | str]]:
        if self.unit == "file":
            yield 1, {"text": stream.read()}
            return
        paragraph: list[str] = []
        start = 1
        for number, line in enumerate(stream, start=1):
            blank = not line.strip()
            if paragraph and (blank or self.unit == "line"):
                yield start, {"text": "".join(paragraph).rstrip("\r\n")}
                paragraph = []
            if not blank:
                start = start if paragraph else number
                paragraph.append(line)
        if paragraph:
            yield start, {"text": "".join(paragraph).rstrip("\r\n")}

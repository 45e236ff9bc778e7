"""Plain text."""

from __future__ import annotations

from typing import Literal

from raybm.data.source import Source


class Text(Source):
    """Plain text: a row a line, a paragraph (blank lines between), or a file; the column is `text`."""

    kind: Literal["text"] = "text"
    unit: Literal["line", "paragraph", "file"] = "paragraph"

"""JSON Lines: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal, TextIO

from raybm.data.source import Row, Source


class Jsonl(Source):
    """One JSON object a line (https://jsonlines.org). Blank lines are skipped."""

    kind: Literal["jsonl"] = "jsonl"

    def rows(self, stream: TextIO) -> Iterator[tuple[int, Row | str]]:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                yield number, f"not JSON: {error}"
            except RecursionError:
                yield number, "not JSON that can be read: nested too deeply"
            else:
                yield number, value if isinstance(value, dict) else "not a JSON object"

"""metrics.jsonl: one JSON object an event, in the order things happened. Trackers (raybm/tracking/) listen.

Every event has `time` (seconds since 1970), `kind` (train, validate, profile, resume, evaluate, stage; trying and trial of a sweep) and
its own fields; those of training have `step`, counted from 1. After a restart some steps are done again and stand twice: the later one
counts.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"


class Events:
    """Appends to `folder`/metrics.jsonl, then tells the listeners (kind, fields); safe for threads of one process."""

    def __init__(self, folder: Path, listeners: Sequence[Callable[[str, dict[str, Any]], None]] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.listeners = folder / FILE, listeners
        self._lock = threading.Lock()

    def emit(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), "kind": kind, **fields}, ensure_ascii=False)
        with self._lock, self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        for listener in self.listeners:
            listener(kind, fields)

    def take(self, source: Path, kinds: Sequence[str]) -> None:
        """Append what stands in another metrics.jsonl, as it was; listeners are not told."""
        lines = [json.dumps(event, ensure_ascii=False) + "\n" for event in read_events(source) if event["kind"] in kinds]
        with self._lock, self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(lines)


def read_events(path: Path) -> list[dict[str, Any]]:
    return json_lines(path.read_bytes()) if path.exists() else []


def json_lines(data: bytes) -> list[dict[str, Any]]:
    """Of a file's content; a torn last line (a killed writer) is left out."""
    return [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def by_step(events: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The events of one kind, one a step (the last that was written), in step order."""
    latest = {event["step"]: event for event in events if event["kind"] == kind}
    return [latest[step] for step in sorted(latest)]

"""What is counted, for Ray's exporter, told many records together.

A request leaves half a dozen records, most of them counts, of which one sum is told.
Ray exports every few seconds, so nobody sees that they come a tenth of a second late.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping

from ray.util.metrics import Counter, Histogram

TOGETHER_S = 0.1

_Tags = tuple[tuple[str, str], ...]


class Exported:
    """Of one process. Asked within its event loop; where none runs, all is told at once."""

    def __init__(self) -> None:
        self._counts: defaultdict[tuple[Counter, _Tags], float] = defaultdict(float)
        self._values: defaultdict[tuple[Histogram, _Tags], list[float]] = defaultdict(list)
        self._loop: asyncio.AbstractEventLoop | None = None  # that will tell

    def count(self, counter: Counter, count: float, tags: Mapping[str, str]) -> None:
        self._counts[counter, tuple(tags.items())] += count
        self._soon()

    def observe(self, histogram: Histogram, value: float, tags: Mapping[str, str]) -> None:
        self._values[histogram, tuple(tags.items())].append(value)
        self._soon()

    def _soon(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.tell()
            return
        if loop is not self._loop:
            self._loop = loop
            loop.call_later(TOGETHER_S, self.tell)

    def tell(self) -> None:
        self._loop = None
        counts, self._counts = self._counts, defaultdict(float)
        values, self._values = self._values, defaultdict(list)
        for (counter, tags), count in counts.items():
            counter.inc(count, dict(tags))
        for (histogram, tags), observed in values.items():
            for value in observed:
                histogram.observe(value, dict(tags))

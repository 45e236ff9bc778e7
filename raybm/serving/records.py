"""What is counted, told many records together.

A request leaves half a dozen records, most of them counts, of which one sum is told. Ray exports every few seconds, so nobody sees that
they come a tenth of a second late; who asks a process itself has them told before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from ray.serve import metrics

from raybm.serving.soon import Soon

TOGETHER_S = 0.1

Tags = tuple[str, ...]


class Metric(Protocol):
    def tell(self, value: float, tags: Tags) -> None:
        """To whoever exports it."""


class Histogram:
    """Of Ray's exporter."""

    def __init__(self, name: str, text: str, boundaries: Sequence[float], tags: Sequence[str]) -> None:
        self._tags = tags
        self._ray = metrics.Histogram(name, text, boundaries=list(boundaries), tag_keys=tuple(tags))

    def tell(self, value: float, tags: Tags) -> None:
        self._ray.observe(value, dict(zip(self._tags, tags, strict=True)))


class Records:
    """Of one process."""

    def __init__(self) -> None:
        self._counts: defaultdict[tuple[Metric, Tags], float] = defaultdict(float)
        self._values: defaultdict[tuple[Metric, Tags], list[float]] = defaultdict(list)
        self._soon = Soon(TOGETHER_S, self.tell)

    def count(self, metric: Metric, count: float, *tags: str) -> None:
        self._counts[metric, tags] += count
        self._soon()

    def observe(self, metric: Metric, value: float, *tags: str) -> None:
        self._values[metric, tags].append(value)
        self._soon()

    def tell(self) -> None:
        counts, self._counts = self._counts, defaultdict(float)
        values, self._values = self._values, defaultdict(list)
        for (metric, tags), count in counts.items():
            metric.tell(count, tags)
        for (metric, tags), observed in values.items():
            for value in observed:
                metric.tell(value, tags)

"""One trial of a sweep, as it stands in the storage."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from raybm.core.lease import KEY as LEASE
from raybm.core.spec import Spec
from raybm.core.storage import Storage
from raybm.search.study import End
from raybm.spec.train import CHANGING, Phase


class Trial(Spec):
    """One point with one seed, as it stands in the storage."""

    point: int
    """From 1."""
    repeat: int = 0
    """From 0; added to the job's seed."""
    parent: int | None = None
    """Of a population's member: the point whose training this one goes on with."""
    start: dict[str, Any]
    """Path of a field → value, where training began."""
    phases: tuple[Phase, ...] = ()
    """What was changed on the way."""
    end: End | None = None
    """None while it is not over."""
    metrics: dict[str, float] = {}
    """The last ones."""
    curve: tuple[dict[str, float], ...] = ()
    """What was known at each validation."""
    seconds: float = 0.0
    error: str = ""

    @property
    def name(self) -> str:
        return f"{self.point:05}-{self.repeat}"

    @property
    def values(self) -> dict[str, Any]:
        """Path of a field → value, as it was last."""
        return self.start | (_by_path(self.phases[-1]) if self.phases else {})

    @property
    def changes(self) -> dict[str, Any]:
        """Path of a field → what it is in the trial's job."""
        return self.start | ({"train.phases": [phase.canonical() for phase in self.phases]} if self.phases else {})


def _by_path(phase: Phase) -> dict[str, Any]:
    return {f"train.{name}": value for name in CHANGING if (value := getattr(phase, name)) is not None}


def stored(storage: Storage) -> dict[int, list[Trial]]:
    """By point, those of a point by their seeds."""
    found: dict[int, list[Trial]] = {}
    for key in sorted(storage.keys("")):
        if key == LEASE:
            continue
        trial = Trial.parse(json.loads(storage.read(key)), key)
        found.setdefault(trial.point, []).append(trial)
    return found


def ended(trials: Sequence[Trial]) -> End | None:
    """Of a point, by its trials: None while one is not over; else the worst."""
    ends = [trial.end for trial in trials]
    return None if None in ends else next((end for end in ("failed", "stopped") if end in ends), "finished")


def mean(trials: Sequence[Trial], metric: str) -> float | None:
    """Over the seeds; None where one of them lacks it."""
    values = [trial.metrics.get(metric) for trial in trials]
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def spread(trials: Sequence[Trial], metric: str) -> float | None:
    """Standard deviation over the seeds; None for one seed, or where one of them lacks the metric or has no number there."""
    values = [value for trial in trials if math.isfinite(value := trial.metrics.get(metric, math.nan))]
    return statistics.stdev(values) if len(values) == len(trials) > 1 else None


def costs(trials: Sequence[Trial], objectives: Mapping[str, str]) -> tuple[float, ...]:
    """Of a point in each objective, the mean over its seeds, the lower the better; endless where one is not finished."""
    finished = ended(trials) == "finished"
    means = {name: mean(trials, name) if finished else None for name in objectives}
    return tuple(math.inf if (value := means[name]) is None else value if mode == "min" else -value for name, mode in objectives.items())

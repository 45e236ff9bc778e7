"""The points of a sweep, beside each other: the best, the front, the table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from raybm.search.study import Asked, End
from raybm.spec.sweep import ENERGY
from raybm.sweep.trial import Trial, costs, ended, mean, spread


@dataclass
class Point:
    asked: Asked
    trials: list[Trial] = field(default_factory=list)
    """One a seed."""
    told: bool = False
    """Whether the study knows how it ended."""

    @property
    def end(self) -> End | None:
        return ended(self.trials)

    def mean(self, metric: str) -> float | None:
        return mean(self.trials, metric)

    def spread(self, metric: str) -> float | None:
        return spread(self.trials, metric)


class Points(list[Point]):
    """In the order in which they were asked for: the place of one is its number less 1."""

    def __init__(self, objectives: Mapping[str, str]) -> None:
        """`objectives`: metric → min or max."""
        super().__init__()
        self.objectives = objectives

    @property
    def first(self) -> str:
        """The objective that the best point is best in."""
        return next(iter(self.objectives))

    @property
    def sign(self) -> int:
        """1 where less of the first objective is better, else -1."""
        return 1 if self.objectives[self.first] == "min" else -1

    def ranked(self) -> list[Point]:
        """The finished points, the best one first; where two are alike in an objective, by the next one."""
        return sorted((point for point in self if point.end == "finished"), key=lambda point: costs(point.trials, self.objectives))

    def front(self) -> list[Point]:
        """The finished points that no other one beats in an objective without being beaten in another (the Pareto front)."""
        finished = self.ranked()
        all_costs = [costs(point.trials, self.objectives) for point in finished]

        def beaten(own: tuple[float, ...]) -> bool:
            return any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in all_costs)

        return [point for point, own in zip(finished, all_costs, strict=True) if not beaten(own)]

    def line(self, trial: Trial) -> list[Trial]:
        """A trial, and before it what it went on from."""
        found = [trial]
        while (parent := found[0].parent) is not None:
            found.insert(0, self[parent - 1].trials[0])
        return found

    def energy_kwh(self) -> float:
        """Of all trials; what a member of a population began with is its parent's."""
        trials = [trial for point in self for trial in point.trials]
        before = [_energy(self[trial.parent - 1].trials[0]) if trial.parent else 0.0 for trial in trials]
        return sum(max(0.0, _energy(trial) - known) for trial, known in zip(trials, before, strict=True))

    def table(self, fields: Collection[str]) -> str:
        """sweep.csv: a row a trial; `front` says whether its point is on the Pareto front. With several seeds the objectives' mean and
        standard deviation over them stand in the rows of each."""
        front = {point.trials[0].point for point in self.front()}
        trials = [trial for point in self for trial in point.trials]
        seeds = self.objectives if any(len(point.trials) > 1 for point in self) else {}
        both = [f"{name}.{part}" for name in seeds for part in ("mean", "std")]
        metrics = sorted({name for trial in trials for name in trial.metrics})
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(["point", "repeat", "parent", "end", "front", *fields, *metrics, *both, "seconds", "error"])
        for trial in trials:
            values = [json.dumps(trial.values[path]) if path in trial.values else "" for path in fields]
            scores = [trial.metrics.get(name, "") for name in metrics]
            place = [trial.point, trial.repeat, trial.parent or "", trial.end or "", int(trial.point in front)]
            point = self[trial.point - 1]
            over = [value for name in seeds for value in (point.mean(name), point.spread(name))]
            rows.writerow([*place, *values, *scores, *over, trial.seconds, trial.error])
        return text.getvalue()


def _energy(trial: Trial) -> float:
    return trial.metrics.get(ENERGY, trial.metrics.get("validation.energy_kwh", 0.0))


def shown(name: str, value: float | None) -> str:
    return f"{name} {'unknown' if value is None else f'{value:.4g}'}"

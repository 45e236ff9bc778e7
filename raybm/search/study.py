"""What was tried and what to try next: points are asked of an Optuna study, and what came of them is told to it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

from raybm.search.space import EDGE, Dimension, drawn, points

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

End = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Asked:
    point: dict[str, Any]
    """Path of a field → value."""
    trial: Trial


class Study:
    """`sampler`: None for every combination, once each. `modes`: min or max, one for each objective. `job`: the plain values that `when`
    looks at."""

    def __init__(self, space: Mapping[str, Dimension], job: Mapping[str, Any], sampler: BaseSampler | None, modes: Sequence[str]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.job = space, job
        self.listed: Iterator[dict[str, Any]] | None = points(space, job) if sampler is None else None
        directions = ["minimize" if mode == "min" else "maximize" for mode in modes]
        self.study = optuna.create_study(sampler=sampler or optuna.samplers.RandomSampler(), directions=directions)
        self.failed: set[int] = set()
        """Optuna's numbers of trials that were told the worst value instead of none."""

    def ask(self, point: Mapping[str, Any] | None = None) -> Asked | None:
        """The next point, or that one again; None where every combination has been asked."""
        if self.listed is not None:
            following = next(self.listed, None)
            point = following if point is None else point
            if point is None:
                return None
        return self._ask(point)

    def again(self, asked: Asked) -> Asked:
        """The same point, of which there will be more to tell."""
        return self._ask(asked.point)

    def _ask(self, point: Mapping[str, Any] | None) -> Asked:
        if point is not None:
            self.study.enqueue_trial({name: _encoded(self.space[name], value) for name, value in point.items()})
        trial = self.study.ask()
        return Asked(drawn(self.space, self.job, lambda name, dimension: dimension.draw(trial, name)), trial)

    def inside(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """The point with these values of the fields that it has; None where it does not lie in the space."""
        point = {name: self.space[name].own(value) for name, value in drawn(self.space, self.job, lambda name, _: values.get(name)).items()}
        return {name: found[0] for name, found in point.items()} if all(point.values()) else None

    def learn(self, point: Mapping[str, Any], values: Sequence[float]) -> None:
        """Of a point that was tried elsewhere."""
        asked = self.ask(point)
        assert asked is not None
        self.tell(asked, "finished", values)

    def report(self, asked: Asked, value: float, time: int) -> None:
        """A value on the way, of a single objective: what estimators know of trials that are stopped."""
        asked.trial.report(value, time)

    def tell(self, asked: Asked, end: End, values: Sequence[float] | None) -> None:
        from optuna.trial import TrialState

        if end == "finished":
            self.study.tell(asked.trial, values)
        elif end == "stopped":
            self.study.tell(asked.trial, state=TrialState.PRUNED)
        else:
            self._fail(asked)

    def _fail(self, asked: Asked) -> None:
        """Samplers leave out what failed, and would try its neighbours again and again: it counts as bad as the worst that is known."""
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        known = [trial for trial in self.study.get_trials(deepcopy=False) if trial.number not in self.failed]
        complete = [trial.values for trial in known if trial.state is TrialState.COMPLETE]
        if isinstance(self.study.sampler, TPESampler):  # ranks by what is complete, then by how far others came: this one is last
            self.study.tell(asked.trial, state=TrialState.FAIL)
            if complete or any(trial.state is TrialState.PRUNED for trial in known):
                again = self.again(asked).trial  # without the values on the way, which may have been good
                self.failed.add(again.number)
                self.study.tell(again, state=TrialState.PRUNED)
        elif complete:
            self.failed.add(asked.trial.number)
            worst = [max if direction.name == "MINIMIZE" else min for direction in self.study.directions]
            self.study.tell(asked.trial, [pick(column) for pick, column in zip(worst, zip(*complete, strict=True), strict=True)])
        else:
            self.study.tell(asked.trial, state=TrialState.FAIL)

    def importance(self) -> dict[str, float]:
        """Path → share of the first objective's variance that the field explains (fANOVA); empty where that cannot be said."""
        import optuna

        several = len(self.study.directions) > 1
        scored = optuna.create_study(directions=self.study.directions)
        scored.add_trials([trial for trial in self.study.trials if trial.number not in self.failed])
        try:
            found = optuna.importance.get_param_importances(
                scored,
                evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
                target=(lambda trial: trial.values[0]) if several else None,
            )
        except (ValueError, RuntimeError):  # too few, or all alike
            return {}
        return {name: share for name, share in found.items() if math.isfinite(share)}


def _encoded(dimension: Dimension, value: Any) -> Any:
    """As `Dimension.draw` asks Optuna for it."""
    if dimension.choice is not None:
        return json.dumps(value)
    if dimension.normal is not None:
        return min(max(NormalDist(*dimension.normal).cdf(value), EDGE), 1 - EDGE)
    return value

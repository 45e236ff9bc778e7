"""Asynchronous successive halving: by Ray Tune where it stops trials; where it promotes them, which Tune cannot, here."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Container, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt

from raybm.core.spec import Spec

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

ENDLESS = 1_000_000  # validations


class Asha(Spec):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934): at 1, 3, 9, ... validations only the best third of what came so
    far goes on."""

    kind: Literal["asha"] = "asha"
    type: Literal["stopping", "promotion"] = "stopping"
    """`stopping`: a trial goes on at once or never. The first ones have little to be compared with, and run long. `promotion`: a trial
    pauses, and goes on from its checkpoint when it is among the best third. Fewer epochs; what goes on starts once more each time."""
    grace: PositiveInt = 1
    """Validations that every trial gets."""
    reduction: Annotated[float, Field(gt=1)] = 3.0
    """One in so many goes on, and gets so many times as long."""

    def build(self, metric: str, mode: str, time: str) -> TrialScheduler:
        return halving(metric, mode, time, self.grace, self.reduction, brackets=1)

    def rung(self, validations: int) -> int:
        """The next number of validations to be compared at, after so many."""
        found = self.grace
        while found <= validations:
            found = max(found + 1, round(found * self.reduction))
        return found

    def promoted(self, costs: Mapping[int, Mapping[int, float]], paused: Container[int], *, last: bool) -> int | None:
        """Which of the `paused` points goes on, if one does: of the latest rung, one that is in the best share of all that came so far.
        `costs`: point → validations → cost, the lower the better. `last`: no other point will come, and one a rung goes on at least."""
        reached = max((max(curve) for curve in costs.values() if curve), default=0)
        rungs = [self.rung(0)]
        while rungs[-1] <= reached:
            rungs.append(self.rung(rungs[-1]))
        for rung, following in reversed(list(pairwise(rungs))):
            here = {
                point: curve[min(time for time in curve if time >= rung)] for point, curve in costs.items() if max(curve, default=0) >= rung
            }
            best = sorted((point for point in here if math.isfinite(here[point])), key=lambda point: here[point])
            for point in best[: max(int(len(here) / self.reduction), int(last))]:
                if point in paused and max(costs[point]) < following:
                    return point
        return None


def halving(metric: str, mode: str, time: str, grace: int, reduction: float, brackets: int) -> TrialScheduler:
    """Asynchronous successive halving, in one bracket or more."""
    import numpy as np
    from ray.tune.schedulers import ASHAScheduler

    class Halving(ASHAScheduler):
        def on_trial_add(self, controller: Any, trial: Any) -> None:
            """A trial's name decides which bracket it is dealt to: the same one when the sweep is begun again."""
            before = np.random.get_state()
            np.random.seed(int.from_bytes(hashlib.sha256(trial.config["name"].encode()).digest()[:4]))
            super().on_trial_add(controller, trial)
            np.random.set_state(before)

        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            self._passed(trial, result)
            return str(super().on_trial_result(controller, trial, result))

        def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
            self._passed(trial, result)
            super().on_trial_complete(controller, trial, result)

        def _passed(self, trial: Any, result: dict[str, Any]) -> None:
            """A trial that goes on from before this run has no score at the rungs behind it: Tune would take its later ones for those."""
            for milestone, scores in self._trial_info[trial.trial_id]._rungs:
                if milestone <= result.get(time, 0) - 1:
                    scores.setdefault(trial.trial_id, math.nan)

    warnings.filterwarnings("ignore", "All-NaN slice encountered", RuntimeWarning)  # of a rung that only such trials have passed
    return Halving(
        time_attr=time,
        metric=metric,
        mode=mode,
        max_t=ENDLESS,  # trials end by themselves
        grace_period=grace,
        reduction_factor=reduction,
        brackets=brackets,
    )

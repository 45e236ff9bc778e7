"""Asynchronous successive halving, by Ray Tune."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from raybm.core.spec import Spec

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

ENDLESS = 1_000_000  # validations


class Asha(Spec):
    """Asynchronous successive halving (Li et al. 2020): at 1, 3, 9, ... validations only the best third of what came so far goes on."""

    kind: Literal["asha"] = "asha"
    grace: PositiveInt = 1
    """Validations that every trial gets."""
    reduction: Annotated[float, Field(gt=1)] = 3.0
    """One in so many goes on, and gets so many times as long."""

    def build(self, metric: str, mode: str, time: str) -> TrialScheduler:
        return halving(metric, mode, time, self.grace, self.reduction, brackets=1)


def halving(metric: str, mode: str, time: str, grace: int, reduction: float, brackets: int) -> TrialScheduler:
    """Asynchronous successive halving, in one bracket or more."""
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr=time,
        metric=metric,
        mode=mode,
        max_t=ENDLESS,  # trials end by themselves
        grace_period=grace,
        reduction_factor=reduction,
        brackets=brackets,
    )

"""HyperBand, by Ray Tune."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from raybm.core.spec import Spec
from raybm.search.asha import halving

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler


class HyperBand(Spec):
    """Successive halving in several brackets, of which some stop early and some late (Li et al. 2018), without waiting for each other: a
    guard against metrics that mislead early."""

    kind: Literal["hyperband"] = "hyperband"
    grace: PositiveInt = 1
    """Validations that every trial gets, in the bracket that stops first."""
    reduction: Annotated[float, Field(gt=1)] = 3.0
    """One in so many goes on, and gets so many times as long."""
    brackets: PositiveInt = 3
    """Ways to halve, among which trials are dealt out: the first after `grace` validations, the next after `reduction` times as many."""

    def build(self, metric: str, mode: str, time: str) -> TrialScheduler:
        return halving(metric, mode, time, self.grace, self.reduction, self.brackets)

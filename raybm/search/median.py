"""The median stopping rule, by Ray Tune."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from raybm.core.spec import Spec

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler


class MedianStopping(Spec):
    """Stops a trial whose best is worse than the median of the others' running means at the same time (Golovin et al. 2017)."""

    kind: Literal["median"] = "median"
    grace: PositiveInt = 2
    """Validations that every trial gets."""
    others: PositiveInt = 3
    """Trials that must have come as far."""

    def build(self, metric: str, mode: str, time: str) -> TrialScheduler:
        from ray.tune.schedulers import MedianStoppingRule

        return MedianStoppingRule(
            time_attr=time, metric=metric, mode=mode, grace_period=self.grace, min_samples_required=self.others, min_time_slice=0
        )

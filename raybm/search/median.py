"""The median stopping rule, by Ray Tune."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

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

        class Rule(MedianStoppingRule):
            def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
                if controller is None:  # of a trial that ran before: it is compared with, and not stopped any more
                    self.on_trial_complete(controller, trial, result)
                    return str(self.CONTINUE)
                return str(super().on_trial_result(controller, trial, result))

            def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
                if metric in result:  # which a trial that failed may lack, and the others' means would miss
                    super().on_trial_complete(controller, trial, result)

        never = math.inf  # with too few others a trial goes on, instead of making room for them
        return Rule(
            time_attr=time, metric=metric, mode=mode, grace_period=self.grace, min_samples_required=self.others, min_time_slice=never
        )

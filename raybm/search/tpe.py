"""Tree-structured Parzen estimators, by Optuna."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt

from raybm.core.spec import Spec

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class Tpe(Spec):
    """Tree-structured Parzen estimators (Bergstra et al. 2011): good with few trials, conditions and any kind of value."""

    LEARNS: ClassVar[bool] = True  # from trials that another search made
    kind: Literal["tpe"] = "tpe"
    startup_trials: PositiveInt = 10
    """Drawn at random before the estimators begin."""
    multivariate: bool = True
    """Estimate fields together instead of one by one."""

    def build(self, seed: int) -> BaseSampler:
        from optuna.exceptions import ExperimentalWarning
        from optuna.samplers import TPESampler

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # of `group`, without which conditions are not estimated together
            return TPESampler(
                n_startup_trials=self.startup_trials,
                multivariate=self.multivariate,
                group=self.multivariate,
                constant_liar=True,  # trials run side by side: what runs counts as bad, so that not all try the same
                seed=seed,
            )

"""Evolution of the covariance matrix, by Optuna and cmaes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt

from raybm.core.spec import Spec

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class CmaEs(Spec):
    """Covariance matrix adaptation (Hansen 2016): for numbers, from some fifty trials on. Choices, and fields with `when`, are drawn at
    random."""

    LEARNS: ClassVar[bool] = False  # from trials that another search made
    kind: Literal["cma_es"] = "cma_es"
    startup_trials: PositiveInt = 1
    """Drawn at random before the evolution begins."""

    def build(self, seed: int) -> BaseSampler:
        from optuna.samplers import CmaEsSampler

        return CmaEsSampler(n_startup_trials=self.startup_trials, seed=seed, warn_independent_sampling=False)

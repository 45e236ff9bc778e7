"""Bayesian optimisation with a Gaussian process, by Optuna."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt

from raybm.core.spec import Spec

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class Gp(Spec):
    """Bayesian optimisation: a Gaussian process of the metric, and where it is expected to improve. For few, costly trials: its own time
    grows with the cube of their number. Fields with `when` are drawn at random."""

    LEARNS: ClassVar[bool] = True  # from trials that another search made
    kind: Literal["gp"] = "gp"
    startup_trials: PositiveInt = 10
    """Drawn at random before the process is fitted."""

    def build(self, seed: int) -> BaseSampler:
        from optuna.samplers import GPSampler

        return GPSampler(n_startup_trials=self.startup_trials, seed=seed, warn_independent_sampling=False)

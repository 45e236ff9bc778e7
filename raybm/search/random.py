"""Independent draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from raybm.core.spec import Spec

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class Random(Spec):
    """Independent draws; what every other sampler has to beat (Bergstra and Bengio 2012)."""

    LEARNS: ClassVar[bool] = False  # from trials that another search made
    kind: Literal["random"] = "random"

    def build(self, seed: int) -> BaseSampler:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)

"""An exponential moving average of the weights (Polyak and Juditsky 1992), of each rank's own tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Average:
    """Under ZeRO stage 3 a rank averages its shards, else the whole weights; `means` goes into each rank's part of a checkpoint."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.means = {name: _own(p).detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """After optimiser step `steps`; young averages forget faster, or the first weights would weigh too much."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        for name, mean in self.means.items():
            mean.lerp_(_own(self.parameters[name]).float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model's weights are the average inside. Collective."""
        kept = {name: _own(p).detach().clone() for name, p in self.parameters.items()}
        self._set(self.means)
        try:
            yield
        finally:
            self._set(kept)

    def settle(self) -> None:
        """The model's weights become the average. Collective."""
        self._set(self.means)

    @torch.no_grad()
    def load(self, means: dict[str, torch.Tensor]) -> None:
        for name, mean in self.means.items():
            mean.copy_(means[name])

    @torch.no_grad()
    def _set(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            _own(parameter).copy_(values[name])
        gathered = [p for p in self.parameters.values() if hasattr(p, "ds_tensor") and p.data.numel() == p.ds_numel]
        if gathered:  # small weights of stage 3 stay whole on every rank: they are gathered anew from the shards
            gathered[0].partition(gathered)
            gathered[0].all_gather(gathered)


def _own(parameter: torch.Tensor) -> torch.Tensor:
    """The tensor that this rank holds of a parameter."""
    shard: torch.Tensor = getattr(parameter, "ds_tensor", parameter)
    return shard

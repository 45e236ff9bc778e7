"""What a rank did since it was last asked, and how fast."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

from raybm.tasks.protocol import LossSum
from raybm.training.loader import Step


class Meter:
    """Losses are summed on the device and read, and so synchronised, only when `reduce` is called."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss, correct
        self.counts = [0, 0, 0, 0]  # units, tokens, padded, samples
        self.accuracy = False
        self.waited_s = 0.0
        self.started, self.empty = time.perf_counter(), True

    def restart_clock(self) -> None:
        """Leave out the time since the last `reduce` (validation, a checkpoint), if nothing was added since."""
        if self.empty:
            self.started, self.waited_s = time.perf_counter(), 0.0

    def add(self, loss: LossSum) -> None:
        total = loss.total.detach().double()
        self.accuracy = loss.correct is not None
        self.sums += torch.stack([total, total.new_zeros(()) if loss.correct is None else loss.correct.double()])

    def count(self, step: Step, waited_s: float = 0.0) -> None:
        for place, value in enumerate((step.units, step.tokens, step.padded, step.samples)):
            self.counts[place] += value
        self.waited_s += waited_s
        self.empty = False

    def reduce(self) -> dict[str, Any]:
        """Over all ranks since the last time: `loss` and `accuracy` by unit, `tokens` without padding, `padding` the share of it in
        what was computed, `data_wait` the share of this rank's time. Collective."""
        seconds, waited_s = time.perf_counter() - self.started, self.waited_s
        everything = torch.cat([self.sums, torch.tensor(self.counts, dtype=torch.float64, device=self.sums.device)])
        dist.all_reduce(everything)
        total, correct, units, tokens, padded, samples = everything.tolist()
        counted, passed = max(units, 1.0), max(seconds, 1e-9)
        self.sums.zero_()
        self.counts, self.waited_s = [0, 0, 0, 0], 0.0
        self.started, self.empty = time.perf_counter(), True
        return {
            "loss": total / counted,
            **({"accuracy": correct / counted} if self.accuracy else {}),
            "units": int(units),
            "tokens": int(tokens),
            "seconds": seconds,
            "tokens_per_s": round(tokens / passed, 1),
            "samples_per_s": round(samples / passed, 2),
            "padding": round(1 - tokens / max(padded, 1.0), 4),
            "data_wait": round(waited_s / passed, 4),
        }

"""What training takes from the socket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from raybm.core.errors import UserError

SAMPLE_S = 15


@contextmanager
def metered(device: torch.device) -> Iterator[Energy]:
    """Count from here to the end of the block."""
    try:
        from codecarbon import OfflineEmissionsTracker
    except ImportError:
        remedy = "Run: pip install 'raybm[energy]', or drop it."
        raise UserError("codecarbon is not installed.", where="train.energy", remedy=remedy) from None
    tracker = OfflineEmissionsTracker(
        country_iso_code="USA",  # for the carbon, which nobody asks for; without one it would look for the machine's place on the internet
        tracking_mode="process",
        force_mode_cpu_load=True,
        gpu_ids=[_gpu(device)] if device.type == "cuda" else [],
        measure_power_secs=SAMPLE_S,
        save_to_file=False,
        allow_multiple_runs=True,
        log_level="critical",
    )
    try:
        yield Energy(tracker, device)
    finally:
        tracker.stop()


def _gpu(device: torch.device) -> str:
    """As the driver numbers or names it; a process may see a part of the machine's."""
    number = device.index or 0
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return seen[number] if number < len(seen) and seen[number] else str(number)


class Energy:
    """Energy of this process, by codecarbon: of its GPU as the driver counts it, of its share of the processor's time by the processor's
    thermal design power, of its memory by its size. An estimate but for the GPU; several processes add up, unless they share a GPU."""

    def __init__(self, tracker: Any, device: torch.device) -> None:
        self.tracker, self.device = tracker, device
        self.tracker.start_task()

    def take(self) -> float:
        """kWh of all ranks since the last time. Collective."""
        told = self.tracker.stop_task()  # None where codecarbon could not begin, which it says in its log
        self.tracker.start_task()
        kwh = told.energy_consumed if told else 0.0
        if told and self.device.type != "cuda":
            kwh -= told.gpu_energy  # codecarbon counts all GPUs of the machine for a second trial of the same process
        total = torch.tensor(kwh, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total)

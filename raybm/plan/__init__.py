"""What a job will need, before it runs: memory, time, energy and money, by arithmetic over the spec and the model's shape.

    devices.py  what a rank can run on, with sources        memory.py   bytes a rank by part, for each ZeRO stage
    count.py    activations and FLOPs, on fake tensors      cost.py     FLOPs, communication, time, energy, money
    job.py      from the spec to what they take             choice.py   what fits, and what raybm would take
    files.py    disk and rows                               fitting.py  refuses what cannot fit, settles `stage: auto`
    words.py    all of it for a person                      units.py    numbers with their units

Nothing is loaded or downloaded, and no cluster is asked.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from raybm.core.errors import NotFound
from raybm.core.storage import Storage, open_storage
from raybm.models.shapes import Shape
from raybm.plan import choice, cost
from raybm.plan.choice import Option, Row
from raybm.plan.devices import DEVICES, NAMES, Device, accelerators, by_accelerator, cpu
from raybm.plan.files import Disk, disk, steps
from raybm.plan.fitting import allowed, check_precision, refuse, resolve_auto
from raybm.plan.job import check_names, device_of, idle, measure, micro_batch, samples, setup_of
from raybm.plan.memory import Offload, deepspeed_estimate
from raybm.plan.units import size
from raybm.plan.words import summary, table
from raybm.spec.job import JobSpec

__all__ = [
    "DEVICES",
    "NAMES",
    "Device",
    "Plan",
    "accelerators",
    "by_accelerator",
    "check_names",
    "cpu",
    "lines",
    "plan",
    "refuse",
    "resolve_auto",
    "size",
    "table",
]


@dataclass(frozen=True)
class Plan:
    """`options`: each ZeRO stage and offload with its largest micro-batch; `chosen`: what the job itself says (None for auto)."""

    model: str
    device: Device
    workers: int
    precision: str
    optimizer: str
    global_batch: int
    shape: Shape
    row: Row
    counted: bool
    """Activations and FLOPs were counted on the model itself; otherwise they come from formulas."""
    flops_per_token: float
    """By the formula; `row.flops` is what a sample really takes, where it was counted."""
    steps: int | None
    options: tuple[Option, ...]
    chosen: Option | None
    recommended: Option | None
    price: float | None
    disk: Disk

    def run(self, option: Option) -> dict[str, float | None]:
        """Of a whole run: seconds, kWh, dollars. None where the number of steps, or the price, is not known."""
        if self.steps is None:
            return {"seconds": None, "kwh": None, "usd": None}
        times = option.seconds
        return {
            "seconds": times.step * self.steps,
            "kwh": cost.energy_kwh(times, self.steps, self.workers, self.device),
            "usd": cost.cost_usd(times, self.steps, self.workers, self.price),
        }

    def deepspeed(self) -> dict[str, int]:
        """What DeepSpeed's own estimators say of bytes a GPU, 16-bit."""
        asked: tuple[tuple[Literal[2, 3], Offload], ...] = ((2, "none"), (2, "optimizer"), (3, "none"), (3, "optimizer"), (3, "all"))
        return {f"{stage}-{offload}": deepspeed_estimate(self.shape, self.workers, stage, offload) for stage, offload in asked}

    def json(self) -> dict[str, Any]:
        whole = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

        def shown(option: Option | None) -> dict[str, Any] | None:
            return None if option is None else choice.as_json(option) | {"run": self.run(option)}

        return whole | {
            "device": vars(self.device),
            "shape": vars(self.shape),
            "row": vars(self.row),
            "disk": vars(self.disk) | {"total": self.disk.total},
            "options": [shown(option) for option in self.options],
            "chosen": shown(self.chosen),
            "recommended": shown(self.recommended),
            "deepspeed_estimate": self.deepspeed(),
        }


def plan(job: JobSpec, storage: Storage, workers: int | None = None, device: Device | None = None, price: float | None = None) -> Plan:
    """For the job's own resources, or for other ones; a global batch that cannot be dealt to so many workers is rounded up. Raises
    NotFound (files, a model that is not on this machine), UserError (an unknown accelerator), PlacementError (a precision that it
    lacks), StorageError."""
    ranks = workers or job.resources.workers
    device = device or device_of(job, ranks)
    check_precision(job, device)
    measured = measure(job, storage)
    if measured is None:
        remedy = "Fetch it first, or describe it as `ref: scratch:MODEL_TYPE` with its `config`."
        raise NotFound("the model is not on this machine yet, so its shape is not known.", where=job.model.ref, remedy=remedy)
    shape, row, counted = measured
    setup, share, room = setup_of(job, ranks, device.name != "cpu"), math.ceil(samples(job) / ranks), choice.usable(device)
    options = choice.options(shape, row, setup, share, device, room)
    own = None if job.train.zero.stage == "auto" else choice.option(shape, row, setup, micro_batch(job, share), share, device, room)
    return Plan(
        model=job.model.ref,
        device=device,
        workers=ranks,
        precision=job.train.precision,
        optimizer=job.train.optimizer,
        global_batch=share * ranks,
        shape=shape,
        row=row,
        counted=counted,
        flops_per_token=cost.flops_per_token(shape, job.model.max_length, job.train.gradient_checkpointing, idle(job, shape)),
        steps=steps(job, share * ranks),
        options=options,
        chosen=own,
        recommended=choice.recommended(options, allowed(job, device)),
        price=device.price if price is None else price,
        disk=disk(job, shape, setup),
    )


def lines(job: JobSpec) -> list[str]:
    """The plan in three lines, for a dry run: quickly, by formulas alone. Raises NotFound, UserError, StorageError."""
    return summary(job, open_storage(job.storage))

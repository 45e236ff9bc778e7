"""Which ZeRO stage and micro-batch fit a device, what each would cost, and which of them raybm would take."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from raybm.models.shapes import Shape
from raybm.plan import cost
from raybm.plan.devices import Device
from raybm.plan.memory import PROCESS_BYTES, Memory, Offload, Setup, Stage, memory
from raybm.plan.units import size

# In the order of preference: the less is sharded and moved, the less is sent.
Way = tuple[Stage, Offload]
LADDER: tuple[Way, ...] = (
    (0, "none"),
    (1, "none"),
    (2, "none"),
    (3, "none"),
    (1, "optimizer"),
    (2, "optimizer"),
    (3, "optimizer"),
    (3, "all"),
)
USABLE = 0.9  # of a GPU's memory; the rest is CUDA's context, NCCL's buffers and what the allocator cannot use


@dataclass(frozen=True)
class Row:
    """What one sample of a micro-batch takes."""

    tokens: int
    activations: int | None
    """Bytes at the peak; None where not known."""
    fixed: int
    """Bytes at that peak whatever the number of rows."""
    flops: float
    """Of its forward and backward pass."""
    moved: float = 0.0
    """Bytes that both passes read and write; 0 where not counted."""

    def bytes_of(self, rows: int) -> int | None:
        return None if self.activations is None else self.fixed + rows * self.activations


@dataclass(frozen=True)
class Option:
    """A stage with the largest micro-batch that fits, or with a given one."""

    stage: Stage
    offload: Offload
    micro_batch: int
    accumulation: int
    fits: bool
    memory: Memory
    communication_bytes: int
    """A rank sends as many in a step."""
    seconds: cost.Seconds


def usable(device: Device, memory_bytes: int | None = None) -> int:
    """Bytes that training may fill of a rank's memory."""
    total = device.memory if memory_bytes is None else memory_bytes
    return total - PROCESS_BYTES if device.name == "cpu" else int(total * USABLE)


def option(shape: Shape, row: Row, setup: Setup, micro_batch: int, share: int, device: Device, room: int) -> Option:
    """`share`: samples a step on each rank, the last pass over them perhaps a smaller one. `room`: bytes."""
    setup = replace(setup, accumulation=max(1, -(-share // micro_batch)))
    need = memory(shape, setup, row.bytes_of(micro_batch))
    return Option(
        setup.stage,
        setup.offload,
        micro_batch,
        setup.accumulation,
        need.total <= room,
        need,
        cost.communication(shape, setup),
        cost.seconds(row.flops * share, row.moved * share, shape, setup, device),
    )


def largest(shape: Shape, row: Row, setup: Setup, share: int, device: Device, room: int) -> Option:
    """With the largest micro-batch that divides `share` and fits; with one sample, and `fits` False, where none does."""
    candidates = [size for size in range(share, 0, -1) if share % size == 0]
    return next(
        (made for size in candidates if (made := option(shape, row, setup, size, share, device, room)).fits),
        option(shape, row, setup, 1, share, device, room),
    )


def options(shape: Shape, row: Row, setup: Setup, share: int, device: Device, room: int) -> tuple[Option, ...]:
    """One for each rung of the ladder; a CPU has nowhere to offload to."""
    rungs = [(stage, offload) for stage, offload in LADDER if offload == "none" or device.name != "cpu"]
    return tuple(largest(shape, row, replace(setup, stage=stage, offload=offload), share, device, room) for stage, offload in rungs)


def recommended(made: tuple[Option, ...], ways: Collection[Way]) -> Option | None:
    """The first rung that fits and is one of the job's `ways`. None where nothing fits."""
    return next((option for option in made if option.fits and (option.stage, option.offload) in ways), None)


def in_words(chosen: Option) -> str:
    """As keys of a job."""
    away = {"none": "", "optimizer": "optimiser", "all": "optimiser and weights"}[chosen.offload]
    host = f" with {away} offloaded ({size(chosen.memory.host)} of the host's memory a rank)" if away else ""
    return f"train.zero.stage {chosen.stage}{host}, micro_batch {chosen.micro_batch}"


def as_json(made: Option) -> dict[str, Any]:
    parts = vars(made.memory) | {"total": made.memory.total}
    times = vars(made.seconds) | {"step": made.seconds.step}
    return vars(made) | {"memory": parts, "seconds": times}

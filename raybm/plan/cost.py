"""Arithmetic, communication, time, energy and money of a step.

Sources: Chowdhery et al. 2022 (PaLM, arXiv:2204.02311, appendix B) after Kaplan et al. 2020 (arXiv:2001.08361, §2.1) for FLOPs a
token; ZeRO (arXiv:1910.02054, §7) for the volume of communication.
"""

from __future__ import annotations

from dataclasses import dataclass

from raybm.models.shapes import Shape
from raybm.plan.devices import Device
from raybm.plan.memory import Setup

PCIE = 25e9  # bytes/s between a GPU and its host (PCIe 4 x16, of 32 GB/s)
HOST = 20e9  # bytes/s of the host's memory for one rank's update (a rough guess: a socket's 200 GB/s, shared)


def flops_per_token(shape: Shape, length: int, checkpointing: bool = False, idle: int = 0) -> float:
    """6N + 12·L·H·Q·T (PaLM, appendix B; layers L, H·Q the hidden size, T the length): 2 of a forward pass and 4 of a backward pass
    for each parameter (2 for a frozen one), and attention. `idle`: those of the frozen ones that have no backward pass, in a second
    model of as many layers. Layers that are computed again add a forward pass: 8N."""
    attention = 12.0 * (shape.layers or 0) * (shape.width or 0) * length
    again = (2.0 * (shape.parameters - idle) + attention / 3) if checkpointing else 0.0
    alone = attention / 3 if idle else 0.0
    return 6.0 * shape.parameters - 2.0 * shape.frozen - 2.0 * idle + attention + alone + again


def communication(shape: Shape, setup: Setup) -> int:
    """Bytes that a rank sends in a step, and as many that it receives (ZeRO §7): with Ψ parameters 2Ψ numbers without ZeRO and in
    stages 1 and 2 (gradients reduced, weights gathered), 3Ψ in stage 3 (weights gathered in both passes). With several
    micro-batches a step, stages 2 and 3 do again what each of them asks for. What does not learn is gathered only."""
    if setup.ranks == 1:
        return 0
    learns, passes = shape.trainable, setup.accumulation
    if setup.stage == 3:
        return passes * (2 * shape.parameters + learns) * setup.each
    return ((passes if setup.stage == 2 else 1) + 1) * learns * setup.each


@dataclass(frozen=True)
class Seconds:
    """Of a step."""

    compute: float
    communication: float
    """All of it."""
    exposed: float
    """What of it computing does not hide."""
    update: float

    @property
    def step(self) -> float:
        return self.compute + self.exposed + self.update


def seconds(flops: float, moved: float, shape: Shape, setup: Setup, device: Device) -> Seconds:
    """`flops`, `moved`: a rank's, of its forward and backward passes. Matrix products run at their share of the peak, and what
    operations read and write comes and goes at the memory's speed; the sum of both, since eager PyTorch does one after the other.
    Communication hides behind the backward pass (two thirds of the computing) where the device overlaps. The update reads and
    writes what it needs once, at the speed of the memory that holds it."""
    compute = flops / ((device.bf16 if setup.each == 2 else device.fp32) * device.utilisation) + moved / device.bandwidth
    share = (setup.ranks - 1) / setup.ranks  # of a ring: a rank's own part does not travel
    speed = device.link if setup.ranks <= device.per_node else min(device.link, device.network)
    sent = communication(shape, setup) * share / speed
    exposed = max(0.0, sent - compute * 2 / 3) if device.overlaps else sent
    learns = shape.trainable / (setup.ranks if setup.stage else 1)
    touched = learns * (12 + 2 * setup.states + setup.each)  # gradient and weight read, weight and its copy written; states both
    update = touched / device.bandwidth
    if setup.offload != "none":
        update = touched / HOST + learns * 2 * setup.each / PCIE
        if setup.offload == "all":
            exposed += setup.accumulation * 2 * shape.parameters / setup.ranks * setup.each / PCIE
    return Seconds(compute, sent, exposed, update)


def energy_kwh(times: Seconds, steps: float, ranks: int, device: Device) -> float:
    """Thermal design power × the share of a step in which the device computes. A lower bound: waiting costs too, and so does the host."""
    return ranks * device.watts * times.compute * steps / 3.6e6


def cost_usd(times: Seconds, steps: float, ranks: int, price: float | None) -> float | None:
    """`price`: an hour of one device."""
    return None if price is None else ranks * price * times.step * steps / 3600

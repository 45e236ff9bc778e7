"""Bytes on one rank, by part, for each ZeRO stage.

Sources: ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054, §3.1 and §5) for what each stage shards; ZeRO-Offload (Ren et al. 2021,
arXiv:2101.06840) for what leaves the device; the source of deepspeed 0.19.8 for what it holds beside that, when; Korthikanti et al.
2022 (arXiv:2205.05198, eq. 1 and §5) for activations where they are not counted (count.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raybm.models.shapes import Shape

Stage = Literal[0, 1, 2, 3]
Offload = Literal["none", "optimizer", "all"]

PROCESS_BYTES = 700_000_000  # of a rank before it has a model: Python, torch, transformers, DeepSpeed (resident; a rough guess)
LIVE = 1_000_000_000  # parameters that ZeRO-3 leaves gathered until their next use (stage3_max_live_parameters, max_reuse_distance)
SUB_GROUP = 1_000_000_000  # parameters that ZeRO-3 updates at a time (sub_group_size)


@dataclass(frozen=True)
class Setup:
    """How a model is trained, as far as memory depends on it."""

    ranks: int
    stage: Stage
    each: int = 4
    """Bytes of a weight, or a gradient: 2 in bf16 and fp16."""
    bucket: int = 0
    """Numbers in DeepSpeed's reduction buffer, or as many as are trained, where that is less."""
    offload: Offload = "none"
    """What lies in the host's memory: the optimiser's states and the update (`optimizer`), the weights too (`all`, stage 3)."""
    states: int = 8
    """Bytes a parameter that the optimiser keeps: AdamW's mean and square of the gradients, in fp32."""
    accumulation: int = 1
    """Micro-batches a step."""
    averaged: bool = False
    """A moving average of the weights is kept, in fp32: of the whole weights, in stage 3 of a rank's shard."""
    overlaps: bool = False
    """`overlap_comm`: one reduction buffer is filled while the other is sent."""
    few: float = 0.0
    """Bytes of a weight that is quantised."""
    secondary: int | None = None
    """Ranks that the weights are sharded over once more, in stage 3 (ZeRO++: Wang et al. 2023, arXiv:2306.10209)."""

    def whole(self, shape: Shape) -> int:
        """Bytes of all the weights."""
        return (shape.parameters - shape.quantized) * self.each + round(shape.quantized * self.few)


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank while it trains. What counts is the larger of the backward pass and the update."""

    weights: int
    gradients: int
    """At the end of the backward pass, before they are reduced."""
    optimizer: int
    """The fp32 copy of the weights (where there is one), the optimiser's states, and the moving average of the weights."""
    buffers: int
    """DeepSpeed's reduction buffers; in stage 3 the weights that stay gathered too."""
    activations: int | None
    """None where they are not known."""
    reduced: int
    """Gradients from the end of the reduction to the update."""
    update: int
    """The gradients' fp32 copy, that lives during the update only."""
    held: int
    """All of it but the activations when the backward pass is over and the update is to come."""
    host: int
    """Bytes in the host's memory for this rank (offload)."""

    @property
    def total(self) -> int:
        backward = self.weights + self.gradients + self.optimizer + self.buffers + (self.activations or 0)
        return max(backward, self.held + self.update)


def memory(shape: Shape, setup: Setup, activations: int | None = None) -> Memory:
    """Stage 1 shards the optimiser's states over the ranks, stage 2 the gradients too, stage 3 the weights too. DeepSpeed reduces
    as the gradients come in stages 2 and 3, so that beside its part a rank has only one that was just computed, and at the end in
    stage 1; after that a rank holds no more than its own part in stage 1 either. Stage 0 is DistributedDataParallel, whose buckets
    are the gradients; in fp32 its weights are the optimiser's own copy. Stage 3 leaves tensors of up to SMALL numbers whole
    everywhere, and gathered ones that are used again within LIVE parameters too: all the weights of a smaller model, until the
    backward pass is through with them."""
    total, learns, ranks, each = shape.parameters, shape.trainable, setup.ranks, setup.each
    stage, away = setup.stage, setup.offload
    sharded = learns // ranks
    optimizer = sharded * (4 + setup.states) if stage else learns * (setup.states + (4 if each == 2 else 0))
    gradients = learns * each if stage < 2 else sharded * each * (2 if stage == 2 and setup.accumulation > 1 else 1) + shape.largest * each
    reduced = sharded * each if stage else learns * each
    update = 4 * (min(sharded, SUB_GROUP) if stage == 3 else sharded) if stage else 0
    weights = total // ranks * each + shape.small * each if stage == 3 else setup.whole(shape)
    if stage == 3 and setup.secondary:
        weights += total // setup.secondary * each
    gathered = min(total - shape.small, LIVE) * each if stage == 3 else 0
    bucket = min(setup.bucket, learns) * each * (2 if setup.overlaps and stage < 3 else 1) if stage else 0
    kept_bucket = bucket if stage == 3 else 0
    average = 4 * (sharded if stage == 3 else learns) if setup.averaged else 0
    host = 0
    if away != "none":  # gradients go to the host as they are reduced, and the update is made there
        host = optimizer + reduced + 4 * sharded + (weights if away == "all" else sharded * each)
        optimizer = update = reduced = 0
        gradients = gradients if stage == 1 else shape.largest * each
        if away == "all":
            weights = shape.small * each
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer + average,
        buffers=bucket + gathered,
        activations=activations,
        reduced=reduced,
        update=update,
        held=weights + optimizer + average + reduced + kept_bucket,
        host=host,
    )


def deepspeed_estimate(shape: Shape, ranks: int, stage: Literal[2, 3], offload: Offload = "none") -> int:
    """Bytes a GPU that deepspeed 0.19.8's estimate_zero2_model_states_mem_needs (runtime/zero/stage_1_and_2.py) and
    estimate_zero3_model_states_mem_needs (stage3.py) answer, for 16-bit training with AdamW: 2 bytes a weight, and 18 for the
    16-bit and the fp32 gradient, the fp32 weight and the two states; stage 3 counts 4 bytes for each parameter of the largest module."""
    if stage == 2:
        return 2 * shape.parameters + (0 if offload != "none" else 18 * shape.parameters // ranks)
    gathered = 4 * shape.largest
    return gathered + {"none": 18 * shape.parameters // ranks, "optimizer": 2 * shape.parameters // ranks, "all": 0}[offload]


def activations_by_formula(shape: Shape, tokens: int, each: int, logits: bool, checkpointing: bool = False) -> int | None:
    """34 bytes a token, hidden unit and layer in 16 bit, twice that in 32 (Korthikanti, eq. 1, without its attention matrices, which
    fused attention does not keep), or 2 and one layer's 34 where layers are computed again (§5); for a language model the logits
    and their gradient, in fp32. Rough: it knows one kind of layer. None where the shape is not known."""
    if shape.width is None or shape.layers is None:
        return None
    unit = tokens * shape.width * each // 2
    body = unit * (2 * shape.layers + 34) if checkpointing else unit * 34 * shape.layers
    return body + (2 * 4 * tokens * (shape.vocabulary or 0) if logits else 0)

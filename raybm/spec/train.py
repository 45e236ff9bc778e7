"""The `train:` section."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from raybm.core.spec import Check, Spec

# Elements of DeepSpeed's communication buffers. Its default (5e8) is a GPU's size: on a CPU it costs 2 GB a rank for nothing.
BUCKET = {"cpu": 5_000_000, "cuda": 200_000_000}


class ZeroSpec(Spec):
    """DeepSpeed ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054)."""

    stage: Literal[0, 1, 2, 3, "auto"] = 2
    """0: replicas, by torch's DistributedDataParallel; 1: optimiser states are sharded; 2: gradients too; 3: weights too; auto: the
    lowest with which `raybm plan` says that the job fits, with the largest micro-batch."""
    offload_optimizer: Literal["cpu", "nvme"] | None = None
    """Keep optimiser states (and do the step) in the host's memory, or on its disk (ZeRO-Offload, arXiv:2101.06840; ZeRO-Infinity,
    arXiv:2104.07857). A training with nvme that stops begins anew: DeepSpeed 0.19 does not read its states back."""
    offload_parameters: Literal["cpu", "nvme"] | None = None
    """Keep weights there too; stage 3."""
    nvme_path: str | None = None
    """Folder on a fast local disk, for nvme."""
    quantized_weights: bool = False
    """ZeRO++ (arXiv:2306.10209): gather weights as int8; stage 3 on GPUs."""
    quantized_gradients: bool = False
    """ZeRO++: reduce gradients as int4; stage 3 on GPUs."""
    secondary_partition: PositiveInt | None = None
    """ZeRO++: GPUs of a node, each of which also keeps a shard of the weights, so that backward passes gather within the node."""

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(("offload_optimizer", "stage"), lambda device, stage: _needs_stage("offloading the optimiser", device, stage, 1)),
        Check(("offload_parameters", "stage"), lambda device, stage: _needs_stage("offloading the weights", device, stage, 3)),
        Check(("quantized_weights", "stage"), lambda on, stage: _needs_stage("gathering quantised weights", on, stage, 3)),
        Check(("quantized_gradients", "stage"), lambda on, stage: _needs_stage("reducing quantised gradients", on, stage, 3)),
        Check(("secondary_partition", "stage"), lambda on, stage: _needs_stage("a secondary partition", on, stage, 3)),
        Check(
            ("nvme_path", "offload_optimizer", "offload_parameters"),
            lambda path, *devices: ("nvme needs a folder.", "Set nvme_path.") if "nvme" in devices and not path else None,
        ),
    )


def _needs_stage(what: str, on: object, stage: int | str, least: int) -> tuple[str, str] | None:
    if on and stage != "auto" and int(stage) < least:
        return f"{what} needs ZeRO stage {least}, and the stage is {stage}.", f"Set stage: {least}" + (" or higher." if least < 3 else ".")
    return None


class EarlyStopping(Spec):
    """Stop when the validation metric has not improved for `patience` evaluations."""

    metric: Literal["loss", "accuracy"] = "loss"
    """Of the validation split; accuracy is per sample for classifiers, per target token for language models."""
    patience: PositiveInt = 3
    """Validations in a row without improvement after which training stops."""
    min_delta: NonNegativeFloat = 0.0
    """A smaller change is no improvement."""


class CheckpointSpec(Spec):
    """When training state is written; the last and the best are kept (by validation loss, or by early stopping's metric)."""

    every_steps: PositiveInt | None = None
    """Optimiser steps between two checkpoints. Default: one at every validation."""
    timeout_s: PositiveFloat = 3600.0
    """The run fails when writing one takes longer, or when ranks wait longer for each other (while one fetches the model)."""


class Phase(Spec):
    """Values that take the place of the section's own after a step, until the next phase."""

    after: PositiveInt
    """Optimiser steps done."""
    lr: PositiveFloat | None = None
    """The highest learning rate, which the schedule goes on from."""
    weight_decay: NonNegativeFloat | None = None
    """As `train.weight_decay`."""
    l1: NonNegativeFloat | None = None
    """Weight of the sum of all weights' sizes in the loss."""


CHANGING = ("lr", "weight_decay", "l1")
"""Fields that can change while a model trains."""


class TrainSpec(Spec):
    """Optimisation. Batch sizes are global: they do not change with the number of workers."""

    epochs: PositiveFloat = 1.0
    """Passes over the training split; a fraction will do."""
    max_steps: PositiveInt | None = None
    """Optimiser steps; overrides `epochs`."""
    global_batch: PositiveInt = 32
    """Samples an optimiser step, over all workers and accumulation."""
    global_tokens: PositiveInt | None = None
    """Tokens an optimiser step, padding apart, as near as whole rows come; overrides `global_batch`."""
    micro_batch: PositiveInt | None = None
    """Samples a forward pass on one worker at most. Default: a step is one pass on each worker, dealt so that they compute about
    equally much, padding included."""
    micro_tokens: PositiveInt | None = None
    """Tokens of a forward pass on one worker, padding included, instead of `micro_batch`: rows of like length go together, as many
    as fit."""
    length_buckets: bool = False
    """Draw a step's rows from those of like length (of 50 steps at a time), so that little is padded. Short and long rows
    then stand in different steps."""
    optimizer: Literal["adamw", "sgd", "lion", "adafactor", "muon"] = "adamw"
    """Adafactor and Muon look at whole matrices, which ZeRO's shards are not: they need zero.stage 0. Muon takes the layers' matrices, and
    AdamW the rest, with steps of like size."""
    lr: PositiveFloat = 5e-5
    """The highest learning rate, reached after warm-up."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled from the gradient (but with sgd, where it is added to it); biases and norms are exempt."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of the mean and the square of the gradients (AdamW, also beside Muon; Lion's two; SGD's momentum is the first)."""
    layer_lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each layer's rate is this share of the one above it; the head's is `lr`."""
    l1: NonNegativeFloat = 0.0
    """Weight of the sum of all weights' sizes in the loss; below ZeRO stage 3."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.06
    """Share of the steps over which the learning rate rises from 0."""
    schedule: Literal["linear", "cosine", "constant", "wsd", "inverse_sqrt", "plateau"] = "linear"
    """How the learning rate falls after warm-up: to `min_lr_share` in a line or a cosine; not at all; wsd: only over the last `decay`
    of the steps; inverse_sqrt: with the root of the step; plateau: halved when the validation loss has not fallen twice in a row."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the steps over which wsd lets the rate fall."""
    min_lr_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """What is left of `lr` at the end (linear, cosine, wsd)."""
    clip_norm: PositiveFloat | None = 1.0
    """Gradients are scaled down to this global norm."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 halve weights and activations and keep fp32 master weights in the optimiser; fp16 (for GPUs without bf16) scales the
    loss by what its gradients bear."""
    gradient_checkpointing: bool = False
    """Keep only the layers' inputs for the backward pass and compute the rest again: less memory, a third more work."""
    compile: bool = False
    """Compile the model by torch.compile; the first steps take minutes."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights, which is what is validated and published."""
    energy: bool = False
    """Estimate the energy that training takes (record: energy_kwh). Wants the extra `energy`."""
    phases: tuple[Phase, ...] = ()
    """What changes on the way: a schedule that was written down, or found by population based training (`sweep.scheduler`)."""
    zero: ZeroSpec = ZeroSpec()
    validate_every_steps: PositiveInt | None = None
    """Optimiser steps between two looks at the validation split. Default: an epoch's."""
    log_every_steps: PositiveInt = 10
    """Steps between two entries in metrics.jsonl."""
    early_stopping: EarlyStopping | None = None
    checkpoint: CheckpointSpec = CheckpointSpec()
    max_failures: NonNegativeInt = 2
    """How often a broken group of workers is started again from the last committed checkpoint."""
    stall_timeout_s: PositiveFloat = 600.0
    """The run fails when no worker reports a step for so long."""

    OPERATIONAL: ClassVar[tuple[str, ...]] = ("log_every_steps", "checkpoint", "max_failures", "stall_timeout_s")
    """Fields that change no step: with others the same training goes on."""
    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(
            ("precision", "zero.stage"),
            lambda precision, stage: (
                (f"{precision} without ZeRO has no fp32 master weights and drifts.", "Use zero.stage 1, 2 or 3, or fp32.")
                if precision != "fp32" and stage == 0
                else None
            ),
        ),
        Check(
            ("optimizer", "zero.stage"),
            lambda optimizer, stage: (
                (f"{optimizer} looks at whole matrices, and ZeRO stage {stage} gives it flat shards.", "Set zero.stage: 0, or take adamw.")
                if optimizer in ("adafactor", "muon") and stage != 0
                else None
            ),
        ),
        Check(
            ("l1", "zero.stage"),
            lambda l1, stage: (
                ("ZeRO stage 3 has no whole weights to sum up.", "Use a lower stage.") if l1 and stage in (3, "auto") else None
            ),
        ),
        Check(
            ("ema", "zero.offload_parameters"),
            lambda ema, place: (
                ("weights on a disk cannot be averaged at each step.", "Set offload_parameters: cpu, or drop train.ema.")
                if ema and place == "nvme"
                else None
            ),
        ),
        Check(
            ("ema", "zero.secondary_partition"),
            lambda ema, partition: (
                ("a secondary partition of the weights would not see the average put in their place.", "Drop one of the two.")
                if ema and partition
                else None
            ),
        ),
        Check(
            ("early_stopping", "zero.offload_optimizer"),
            lambda rule, place: (
                ("the best weights could not be read back: DeepSpeed 0.19 loads no checkpoint of an optimiser on nvme.", "Offload to cpu.")
                if rule and place == "nvme"
                else None
            ),
        ),
        Check(
            ("phases",),
            lambda phases: (
                ("phases out of order.", "Each begins after the one before.")
                if any(later.after <= earlier.after for earlier, later in pairwise(phases))
                else None
            ),
        ),
        Check(
            ("phases", "zero.stage"),
            lambda phases, stage: (
                ("ZeRO stage 3 has no whole weights to sum up for l1.", "Use a lower stage.")
                if stage in (3, "auto") and any(phase.l1 for phase in phases)
                else None
            ),
        ),
        Check(
            ("micro_tokens", "micro_batch"),
            lambda tokens, rows: ("micro_batch and micro_tokens exclude each other.", "Keep one.") if tokens and rows else None,
        ),
    )

    def at(self, step: int) -> TrainSpec:
        """What counts for the step after `step` of them are done."""
        changed: dict[str, Any] = {}
        for phase in self.phases:
            if phase.after <= step:
                changed |= phase.model_dump(include=set(CHANGING), exclude_none=True)
        return self.model_copy(update=changed) if changed else self

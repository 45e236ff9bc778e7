"""The `train:` section."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from raybm.core.spec import Check, Spec

# Elements of DeepSpeed's communication buffers. Its default (5e8) is a GPU's size: on a CPU it costs 2 GB a rank for nothing.
BUCKET = {"cpu": 5_000_000, "cuda": 200_000_000}


class ZeroSpec(Spec):
    """DeepSpeed ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054)."""

    stage: Literal[0, 1, 2, 3] = 2
    """0: replicas; 1: optimiser states are sharded; 2: gradients too; 3: weights too."""


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


class TrainSpec(Spec):
    """Optimisation. Batch sizes are global: they do not change with the number of workers."""

    epochs: PositiveFloat = 1.0
    """Passes over the training split; a fraction will do."""
    max_steps: PositiveInt | None = None
    """Optimiser steps; overrides `epochs`."""
    global_batch: PositiveInt = 32
    """Samples an optimiser step, over all workers and accumulation."""
    micro_batch: PositiveInt | None = None
    """Samples a forward pass on one worker. Default: global_batch ÷ workers."""
    lr: PositiveFloat = 5e-5
    """The highest learning rate, reached after warm-up."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's decoupled decay; biases and norms are exempt."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's decay rates of the mean and the square of the gradients."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.06
    """Share of the steps over which the learning rate rises from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after warm-up (to 0)."""
    clip_norm: PositiveFloat | None = 1.0
    """Gradients are scaled down to this global norm."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 halves weights and activations and keeps fp32 master weights in the optimiser."""
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

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(
            ("precision", "zero.stage"),
            lambda precision, stage: (
                ("bf16 without ZeRO has no fp32 master weights and drifts.", "Use zero.stage 1, 2 or 3, or fp32.")
                if precision == "bf16" and stage == 0
                else None
            ),
        ),
    )

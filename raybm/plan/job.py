"""From a job's spec to what the arithmetic takes: device, setup, micro-batch, and what its model and a row of it measure."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from raybm.core.errors import UserError
from raybm.core.storage import Storage
from raybm.data import SourceSpec
from raybm.models.shapes import Shape, config_of, place
from raybm.models.shapes import shape as shape_of
from raybm.plan import cost
from raybm.plan.choice import Row
from raybm.plan.devices import DEVICES, Device, by_accelerator, cpu
from raybm.plan.memory import Setup, activations_by_formula
from raybm.spec.job import JobSpec
from raybm.spec.train import BUCKET

STATES = {"adamw": 8, "lion": 4, "sgd": 4, "muon": 8, "adafactor": 0}  # bytes a parameter; of Muon's 4 and AdamW's 8 the larger
FEW_BYTES = {"nf4": 0.5 + 4 / 64, "int8": 1.0}  # nf4 with an fp32 scale for each 64 (bitsandbytes' own block)
HEADS_OVER_VOCABULARY = ("causal_lm", "masked_lm", "seq2seq", "preference")
# What only the data know of a model's config, or what is no model: that is told by whoever builds it.
UNBUILT = (KeyError, AttributeError, ValueError, RuntimeError, TypeError, AssertionError, OSError)


def each_of(job: JobSpec) -> int:
    """Bytes of one weight, or one gradient."""
    return 4 if job.train.precision == "fp32" else 2


def device_of(job: JobSpec, ranks: int | None = None) -> Device:
    """What the job's ranks run on. Raises UserError for GPUs of a kind that the table does not have."""
    resources = job.resources
    if not resources.gpus_per_worker:
        return cpu(resources.cpus_per_worker, ranks or resources.workers)
    found = by_accelerator(resources.accelerator_type)
    if found is None:
        named = resources.accelerator_type or "a GPU of no kind"
        raise UserError(
            f"{named} is asked for, and its memory is not known.",
            where="resources.accelerator_type",
            remedy=f"Name one of {', '.join(device.accelerator for device in DEVICES.values() if device.accelerator)}, or give --device.",
        )
    return replace(found, memory=int(found.memory * min(1.0, resources.gpus_per_worker)))


def setup_of(job: JobSpec, ranks: int, on_gpu: bool) -> Setup:
    """What the job says of how memory is dealt; `stage: auto` counts as 0."""
    train, zero = job.train, job.train.zero
    return Setup(
        ranks=ranks,
        stage=0 if zero.stage == "auto" else zero.stage,
        each=each_of(job),
        bucket=BUCKET["cuda" if on_gpu else "cpu"],
        offload="all" if zero.offload_parameters else "optimizer" if zero.offload_optimizer else "none",
        states=STATES[train.optimizer],
        averaged=train.ema is not None,
        secondary=zero.secondary_partition,
        overlaps=on_gpu,
        few=FEW_BYTES[job.model.lora.quantize] if job.model.lora and job.model.lora.quantize else 0.0,
    )


def samples(job: JobSpec) -> int:
    """Of an optimiser step; of one in tokens, as many as there are at their longest."""
    if job.train.global_tokens:
        return max(1, job.train.global_tokens // job.model.max_length)
    return job.train.global_batch


def packed(job: JobSpec) -> bool | None:
    """Whether training sequences are filled up to `max_length`. None where only the data tell."""
    if job.task.kind != "causal_lm" or job.task.packing:
        return job.task.kind == "causal_lm"
    running = [True if source.kind == "text" or "text" in source.columns else _converses(source) for source in job.data.sources]
    return None if None in running or len(set(running)) > 1 else running[0]


def _converses(source: SourceSpec) -> bool | None:
    """False (no running text) for conversations."""
    return False if source.kind == "conversations" or {"messages", "prompt"} & set(source.columns) else None


def micro_batch(job: JobSpec, share: int) -> int:
    """Samples of a forward pass, out of `share` a step; with `micro_tokens` as many as fit at their longest."""
    train = job.train
    if train.micro_tokens:
        return max(1, min(share, train.micro_tokens // job.model.max_length))
    return min(share, train.micro_batch or share)


def measure(job: JobSpec, storage: Storage) -> tuple[Shape, Row, bool] | None:
    """The model's shape and what a sample of the greatest length takes: counted on the task's own model where that can be done
    (the last value says so), by formulas otherwise. None for a model that is not on this machine. Loads torch. Raises NotFound."""
    from raybm.plan.count import count

    config = config_of(job.model, storage)
    if config is None:
        return None
    processor = _processor(job, storage, config)
    counted = count(job.task.build(), job.model, config, job.train.precision, job.train.gradient_checkpointing, processor)
    if counted is None:
        shape = shape_as_trained(job, storage)
        return None if shape is None else (shape, row_by_formula(job, shape), False)
    return counted.shape, Row(job.model.max_length, counted.activations, counted.fixed, counted.flops, counted.moved), True


def check_names(job: JobSpec, storage: Storage) -> None:
    """Raises UserError for adapters and frozen layers that the model does not have, and gradient checkpointing that it cannot do. Of a
    model that is not on this machine nothing is known. Loads torch for a job that asks for one of these."""
    if not (job.model.lora or job.model.freeze or job.train.gradient_checkpointing):
        return
    with suppress(*UNBUILT):
        if (config := config_of(job.model, storage)) is not None:
            _skeleton(job, storage, config)


def shape_as_trained(job: JobSpec, storage: Storage) -> Shape | None:
    """The model's shape without looking at a step. Where adapters, frozen layers or a reference make it another one than its weights
    have, it is that of the task's own model (which loads torch), if it can be built. None for a model that is not on this machine. Raises
    NotFound, UserError as `check_names` does."""
    if job.model.lora or job.model.freeze or job.task.kind == "preference":
        with suppress(*UNBUILT):
            if (config := config_of(job.model, storage)) is not None:
                from raybm.plan.count import as_trained

                return as_trained(_skeleton(job, storage, config), job.model, config)
    return shape_of(job.model, storage)


def idle(job: JobSpec, shape: Shape) -> int:
    """Parameters that have a forward pass alone, of a shape as trained: the reference of a preference, the policy without its adapters."""
    if job.task.kind != "preference" or not shape.frozen:
        return 0
    return (shape.parameters - (shape.trainable if job.model.lora else 0)) // 2


def _skeleton(job: JobSpec, storage: Storage, config: Mapping[str, Any]) -> Any:
    from raybm.plan.count import Tokens, skeleton

    processor = _processor(job, storage, config) or Tokens(int(config.get("vocab_size") or 0))
    return skeleton(job.task.build(), job.model, config, job.train.gradient_checkpointing, processor)


def _processor(job: JobSpec, storage: Storage, config: Mapping[str, Any]) -> Any:
    """What a task of pictures turns them into numbers by; None for others."""
    if job.task.INPUT not in ("image", "image_text"):
        return None
    from raybm.models.image_text import ImageTextProcessor
    from raybm.models.images import ImageProcessor, from_spec
    from raybm.plan.count import Tokens

    if job.model.image is not None:
        images = from_spec(job.model.image)
    elif (found := place(job.model, storage)) is not None:
        images = ImageProcessor.from_pretrained(found)
    else:
        return None
    vocabulary = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    return images if job.task.INPUT == "image" else ImageTextProcessor(Tokens(int(vocabulary or 0)), images)


def row_by_formula(job: JobSpec, shape: Shape) -> Row:
    length, checkpointing = job.model.max_length, job.train.gradient_checkpointing
    activations = activations_by_formula(shape, length, each_of(job), job.task.kind in HEADS_OVER_VOCABULARY, checkpointing)
    return Row(length, activations, 0, cost.flops_per_token(shape, length, checkpointing, idle(job, shape)) * length)

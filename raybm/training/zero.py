"""From the spec to DeepSpeed's dict, and the frame in which a sharded model is built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raybm.core.errors import UserError
from raybm.spec.train import BUCKET, TrainSpec, ZeroSpec

ALIGNED = 1024  # numbers; DeepSpeed wants a few of a bucket to go evenly


def deepspeed_config(train: TrainSpec, workers: int, device: str, trainable: int | None = None) -> dict[str, Any]:
    """One micro-batch a step as far as DeepSpeed knows: the loop says itself which pass is the last of a step, since their number
    changes with the rows' lengths. `trainable`: numbers that are learned, where they are known; buffers need not be larger."""
    return {
        "train_batch_size": workers,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.clip_norm or 0.0,
        "bf16": {"enabled": train.precision == "bf16"},
        "fp16": {"enabled": train.precision == "fp16"},  # loss scaling is dynamic
        "zero_optimization": _zero(train.zero, device, trainable),
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000_000,
    }


def _zero(zero: ZeroSpec, device: str, trainable: int | None) -> dict[str, Any]:
    bucket = BUCKET.get(device, BUCKET["cuda"])
    if trainable is not None:
        bucket = min(bucket, -(-trainable // ALIGNED) * ALIGNED)
    config: dict[str, Any] = {
        "stage": zero.stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "stage3_prefetch_bucket_size": bucket // 10,
        "stage3_param_persistence_threshold": 100_000,
        "stage3_gather_16bit_weights_on_model_save": True,
        "overlap_comm": device != "cpu",
    }
    for name, place in (("offload_optimizer", zero.offload_optimizer), ("offload_param", zero.offload_parameters)):
        if place:
            config[name] = {"device": place, "pin_memory": device != "cpu"} | ({"nvme_path": zero.nvme_path} if place == "nvme" else {})
    if zero.quantized_weights or zero.quantized_gradients:
        config |= {"zero_quantized_weights": zero.quantized_weights, "zero_quantized_gradients": zero.quantized_gradients}
    if zero.secondary_partition:
        config["zero_hpz_partition_size"] = zero.secondary_partition
    return config


@contextmanager
def sharded_from_the_start(train: TrainSpec, workers: int, device: str) -> Iterator[None]:
    """Models that transformers builds or loads inside are sharded layer by layer as they come (zero.Init), so that no rank ever
    holds the whole. Does nothing below stage 3. Collective: `torch.distributed` stands."""
    if train.zero.stage != 3:
        yield
        return
    import deepspeed
    import torch._dynamo  # noqa: F401  (a lazy import inside zero.Init fails on its patched tensors)
    from transformers.integrations import HfDeepSpeedConfig

    deepspeed.init_distributed()  # without it zero.Init sees one rank
    config = HfDeepSpeedConfig(deepspeed_config(train, workers, device))
    try:
        yield
    finally:
        del config  # transformers holds a weak reference: from here on it builds models as usual


def check_device(train: TrainSpec, device: str) -> None:
    """Raises UserError for a precision that the device has not."""
    import torch

    if train.precision == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"{torch.cuda.get_device_name()} has no bf16.", where="train.precision", remedy="Use fp16 or fp32.")
    if train.precision == "fp16" and device == "cpu":
        raise UserError("CPUs train in fp32 or bf16.", where="train.precision", remedy="Use bf16.")

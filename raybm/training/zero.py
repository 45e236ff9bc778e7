"""From the spec to DeepSpeed's dict, and to the optimiser that it shards."""

from __future__ import annotations

import math
from typing import Any

import torch

from raybm.spec.train import BUCKET, TrainSpec


def deepspeed_config(train: TrainSpec, workers: int, micro_batch: int, device: str) -> dict[str, Any]:
    bucket = BUCKET.get(device, BUCKET["cuda"])
    return {
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": train.global_batch // (workers * micro_batch),
        "gradient_clipping": train.clip_norm or 0.0,
        "bf16": {"enabled": train.precision == "bf16"},
        "zero_optimization": {
            "stage": train.zero.stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket // 10,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_gather_16bit_weights_on_model_save": True,
            "overlap_comm": device != "cpu",
        },
        "steps_per_print": 1_000_000_000,
    }


def optimizer(model: torch.nn.Module, train: TrainSpec) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019); weight decay spares what has one dimension (biases, norms)."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    spared = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=train.lr, betas=train.betas, fused=True)


def learning_rate(train: TrainSpec, step: int, total: int) -> float:
    """The rate of a step (counted from 0) out of `total`: linear warm-up, then linear or cosine to 0, or constant."""
    warmup = math.ceil(train.warmup * total)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if train.schedule == "constant":
        return train.lr
    if train.schedule == "cosine":
        return train.lr * 0.5 * (1 + math.cos(math.pi * done))
    return train.lr * (1 - done)

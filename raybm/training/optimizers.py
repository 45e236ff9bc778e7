"""Optimisers by name, their groups of parameters, and the learning rate of a step."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

import torch

from raybm.core.errors import UserError
from raybm.spec.train import TrainSpec

LAYER = re.compile(r"\.(\d+)\.|_l(\d+)")
"""The first number in a parameter's name is its layer's; torch's recurrent modules write it behind (weight_ih_l0)."""


def optimizer(model: torch.nn.Module, train: TrainSpec) -> torch.optim.Optimizer:
    """Over what is to be trained. Every group carries `rate`, its share of the learning rate. Weight decay spares what has one
    dimension (biases, norms)."""
    return _build(train, _groups(model, train))


def _groups(model: torch.nn.Module, train: TrainSpec) -> list[dict[str, Any]]:
    top = 1 + max(((_layer(name) or 0) + 1 for name, _ in model.named_parameters() if _layer(name) is not None), default=0)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    groups: dict[tuple[bool, float, bool], list[torch.nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            first = id(parameter) in embeddings or (_layer(name) is None and "embed" in name)
            depth = 0 if first else _depth(name, top)
            matrix, hidden = _dimensions(parameter) > 1, 0 < depth < top
            apart = train.optimizer == "muon" and matrix and hidden  # else fewer groups, which ZeRO sends one by one
            groups[matrix, train.layer_lr_decay ** (top - depth), apart].append(parameter)
    return [
        {
            "params": held,
            "weight_decay": train.weight_decay if matrices else 0.0,
            "rate": rate,
            "lr": train.lr * rate,
            "matrices": matrices,
            "hidden": hidden,
        }
        for (matrices, rate, hidden), held in groups.items()
    ]


def _dimensions(parameter: torch.nn.Parameter) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))  # a sharded parameter is flat


def _layer(name: str) -> int | None:
    found = LAYER.search(name)
    return int(found.group(1) or found.group(2)) if found else None


def _depth(name: str, top: int) -> int:
    """Of what is no embedding (0): the layers, then the head, where all that stands in no layer belongs."""
    layer = _layer(name)
    return top if layer is None else layer + 1


def _build(train: TrainSpec, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), SGD with momentum, Lion (Chen et al. 2023), Adafactor (Shazeer and Stern 2018), Muon (Jordan
    2024) for the layers' matrices, with AdamW for the rest; its steps are scaled to the size of AdamW's (Liu et al. 2025,
    arXiv:2502.16982), so that one rate does for both."""
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, fused=True)
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.lr, momentum=train.betas[0], fused=True)
    if train.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=train.lr)
    try:
        import pytorch_optimizer
    except ImportError:
        raise UserError(
            f"{train.optimizer} needs the package pytorch-optimizer.",
            where="train.optimizer",
            remedy="Run: pip install 'raybm[optimizers]'",
        ) from None
    if train.optimizer == "lion":
        return pytorch_optimizer.Lion(groups, lr=train.lr, betas=train.betas)
    groups = [group | {"use_muon": group["hidden"]} | ({} if group["hidden"] else {"betas": train.betas}) for group in groups]
    return pytorch_optimizer.Muon(groups, lr=train.lr, use_adjusted_lr=True)


def learning_rate(train: TrainSpec, step: int, total: int) -> float:
    """The rate of a step (counted from 0) out of `total`, before what a plateau takes from it: a linear warm-up, then the schedule."""
    warmup = math.ceil(train.warmup * total)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    if train.schedule == "inverse_sqrt":
        return train.lr * math.sqrt(max(1, warmup) / (step + 1))
    return train.lr * (train.min_lr_share + (1 - train.min_lr_share) * _left(train, step, warmup, total))


def _left(train: TrainSpec, step: int, warmup: int, total: int) -> float:
    """What is left of the way from `lr` to its least, from 1 to 0."""
    done = (step - warmup) / max(1, total - warmup)
    if train.schedule == "linear":
        return 1 - done
    if train.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if train.schedule == "wsd":  # warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395)
        return min(1.0, (total - step) / max(1, math.ceil(train.decay * total)))
    return 1.0

"""Padding and cross-entropy, shared by the tasks that take token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from raybm.tasks.protocol import Batch, LossSum, Row

IGNORED = -100  # the label that no loss counts (PyTorch's cross_entropy default)


def pad(rows: Sequence[Any], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Integer rows of different lengths → (len(rows), longest) filled with `value` on the right, and the mask of what is real."""
    longest = max(len(row) for row in rows)
    filled = np.full((len(rows), longest), value, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for index, row in enumerate(rows):
        filled[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return torch.from_numpy(filled), torch.from_numpy(mask)


def labelled(rows: Sequence[Row], filler: int) -> Batch:
    """Rows with as many `labels` as they like beside their `input_ids`, padded by `filler` and by IGNORED, with the mask."""
    ids, mask = pad([row["input_ids"] for row in rows], filler)
    labels, _ = pad([row["labels"] for row in rows], IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def training_only(model: torch.nn.Module, share: float) -> float:
    """What is smoothed, dropped or the like in training only. `model`: perhaps in an engine, whose own flag stays as it was (DeepSpeed)."""
    inside: torch.nn.Module = getattr(model, "module", model)
    return share if inside.training else 0.0


def summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> LossSum:
    """Logits (..., classes), labels (...); those that are IGNORED count neither for the loss nor as right."""
    logits, labels = logits.float().reshape(-1, logits.shape[-1]), labels.flatten()
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing)
    right = logits.detach().max(-1).indices == labels  # argmax takes twice the seconds on a CPU
    return LossSum(total, right.sum())

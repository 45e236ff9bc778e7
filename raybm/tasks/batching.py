"""Padding, shared by the tasks that take token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

IGNORED = -100  # the label that no loss counts (PyTorch's cross_entropy default)


def pad(rows: Sequence[Any], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Integer rows of different lengths → (len(rows), longest) filled with `value` on the right, and the mask of what is real."""
    longest = max(len(row) for row in rows)
    filled = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        filled[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        mask[index, : len(row)] = 1
    return filled, mask

"""Padding, shared by the tasks that take token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

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

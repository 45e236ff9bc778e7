"""FLOPs of attention, for PyTorch's FlopCounterMode: its own table lacks the CPU's kernel, and before torch 2.13 it refuses keys that
several query heads share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Shape = Sequence[int]


def _product(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Scores and their product with the values: of queries (batch, heads, length, width), whatever keys the heads share."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (width + value[3])


def _gradients(gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """The scores once more, and the gradients of queries, keys, scores and values."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (3 * width + 2 * value[3])


_ATEN = torch.ops.aten
ATTENTION: dict[Any, Callable[..., int]] = {
    **dict.fromkeys(
        (
            _ATEN._scaled_dot_product_flash_attention_for_cpu,
            _ATEN._scaled_dot_product_flash_attention,
            _ATEN._scaled_dot_product_efficient_attention,
            _ATEN._scaled_dot_product_cudnn_attention,
        ),
        _product,
    ),
    **dict.fromkeys(
        (
            _ATEN._scaled_dot_product_flash_attention_for_cpu_backward,
            _ATEN._scaled_dot_product_flash_attention_backward,
            _ATEN._scaled_dot_product_efficient_attention_backward,
            _ATEN._scaled_dot_product_cudnn_attention_backward,
        ),
        _gradients,
    ),
}

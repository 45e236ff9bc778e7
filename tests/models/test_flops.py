from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from raybm.models.flops import ATTENTION


def counted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[int, int]:
    """FLOPs of attention and of its gradients."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        out = scaled_dot_product_attention(query, key, value, enable_gqa=query.shape[1] != key.shape[1])
        forward = counter.get_total_flops()
        out.sum().backward()
    return forward, counter.get_total_flops() - forward


def test_attention_costs_the_same_whether_heads_share_their_keys_or_not() -> None:
    query, key, value = (torch.randn(2, heads, length, 8, requires_grad=True) for heads, length in ((6, 10), (2, 12), (2, 12)))
    whole = [tensor.detach().repeat_interleave(3, 1).requires_grad_() for tensor in (key, value)]
    products = 2 * 2 * 6 * 10 * 12 * 8  # multiplications and additions of one product of matrices
    assert counted(query, key, value) == counted(query, *whole) == (2 * products, 5 * products)

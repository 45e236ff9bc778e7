from __future__ import annotations

import torch

from raybm.engines.transformers.batch import Row
from raybm.engines.transformers.sampling import choose


def draw(logits: torch.Tensor, count: int, temperature: float, top_p: float) -> torch.Tensor:
    """Shares of the tokens in `count` draws."""
    rows = [Row([], temperature, top_p, torch.Generator().manual_seed(i)) for i in range(count)]
    return torch.bincount(choose(logits.expand(count, -1), rows), minlength=len(logits)) / count


def test_draws_follow_the_softmax_at_a_temperature() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -torch.inf])
    shares = draw(logits, 4000, 0.7, 1.0)
    assert torch.allclose(shares, torch.softmax(logits / 0.7, -1), atol=0.03)
    assert shares[3] == 0


def test_only_the_nucleus_is_drawn_from() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert torch.allclose(draw(logits, 4000, 1.0, 0.7), torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.03)
    assert draw(logits, 50, 1.0, 0.0)[0] == 1


def test_a_nucleus_wider_than_the_quick_look_is_drawn_from_whole() -> None:
    shares = draw(torch.zeros(2000), 500, 1.0, 0.99)
    assert (shares > 0).sum() > 350


def test_rows_mix_and_temperature_zero_takes_the_likeliest() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    rows = [Row([], 0.0), Row([], 1.0, 0.5, torch.Generator().manual_seed(1)), Row([], 1e-9)]
    chosen = choose(logits, rows)
    assert chosen[[0, 2]].tolist() == logits.argmax(-1)[[0, 2]].tolist()

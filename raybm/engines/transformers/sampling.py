"""Choosing the next token: greedy, or from the nucleus (Holtzman et al. 2020, arXiv:1904.09751) with a random stream of the row's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from raybm.engines.vocabulary import Constraint

HEAD = 256  # a nucleus is nearly always smaller: a top-k of so many spares sorting the vocabulary (4 ms a row of 49k on a CPU)


class Noted(NamedTuple):
    """Log-probabilities as the model gave them: of the chosen token, and of the likeliest ones (id, value)."""

    chosen: float
    top: list[tuple[int, float]]


class Sampled(Protocol):
    ids: list[int]
    prompt_tokens: int
    temperature: float
    top_p: float
    random: torch.Generator  # on the CPU; one number is drawn a token, whatever shares the batch
    frequency_penalty: float
    presence_penalty: float
    constraint: Constraint | None
    logprobs: int | None
    likely: Noted | None


def choose(logits: torch.Tensor, rows: Sequence[Sampled]) -> torch.Tensor:
    """Logits (rows, vocabulary) → token ids (rows,). Notes what each row wants of log-probabilities."""
    changed = _changed(logits, rows)
    chosen = changed.argmax(dim=-1)
    warm = [i for i, row in enumerate(rows) if row.temperature > 1e-5]
    for group in ([i for i in warm if rows[i].top_p < 1], [i for i in warm if rows[i].top_p >= 1]):
        if group:
            chosen[group] = _sample(changed[group], [rows[i] for i in group])
    for i, row in enumerate(rows):
        if row.constraint:
            row.constraint.took(int(chosen[i]))
        if row.logprobs is not None:
            row.likely = _noted(logits[i], int(chosen[i]), row.logprobs)
    return chosen


def _changed(logits: torch.Tensor, rows: Sequence[Sampled]) -> torch.Tensor:
    """The logits after penalties and constraints; the same tensor where there are none."""
    of_their_own = [i for i, row in enumerate(rows) if row.constraint or row.frequency_penalty or row.presence_penalty]
    if of_their_own:
        logits = logits.clone()
    for i in of_their_own:
        row = rows[i]
        if row.frequency_penalty or row.presence_penalty:
            written, times = torch.tensor(row.ids[row.prompt_tokens :], dtype=torch.long, device=logits.device).unique(return_counts=True)
            logits[i, written] -= row.frequency_penalty * times + row.presence_penalty
        if row.constraint:
            logits[i].masked_fill_(~row.constraint.allowed(logits.shape[-1]).to(logits.device), -torch.inf)
    return logits


def _noted(logits: torch.Tensor, chosen: int, count: int) -> Noted:
    shares = torch.log_softmax(logits, dim=-1)
    values, ids = shares.topk(min(count, len(shares)))
    return Noted(float(shares[chosen]), list(zip(ids.tolist(), values.tolist(), strict=True)))


def _sample(logits: torch.Tensor, rows: Sequence[Sampled]) -> torch.Tensor:
    """By inverting the cumulative distribution, in float64 so that no rounding picks a token of probability 0."""
    column = [[row.temperature, row.top_p, torch.rand(1, generator=row.random).item()] for row in rows]
    temperature, top_p, draw = torch.tensor(column, dtype=torch.float64, device=logits.device).T.unsqueeze(-1)
    weights = torch.softmax(logits.double() / temperature, dim=-1)
    if min(row.top_p for row in rows) >= 1:
        mass = weights.cumsum(-1)
        return torch.searchsorted(mass, draw * mass[:, -1:], right=True).squeeze(-1)
    for width in (min(HEAD, weights.shape[-1]), weights.shape[-1]):
        head, ids = weights.topk(width)
        if (head.sum(-1, keepdim=True) >= top_p).all():
            break
    head = head.where(head.cumsum(-1) - head < top_p, 0)
    head[:, 0] = head[:, 0].clamp(min=torch.finfo(head.dtype).tiny)  # top_p 0 means the likeliest
    mass = head.cumsum(-1)
    return ids.gather(1, torch.searchsorted(mass, draw * mass[:, -1:], right=True)).squeeze(-1)

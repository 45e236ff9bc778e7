"""Exact deduplication."""

from __future__ import annotations

from typing import Literal

from raybm.data.step import Step


class ExactDedup(Step):
    """Keep the first of rows that are equal in `columns`, over all sources and splits (test rows never stand in training)."""

    kind: Literal["exact_dedup"] = "exact_dedup"
    columns: tuple[str, ...] = ()
    """Default: the text of the row (`text`, `messages`, or `prompt` and `completion`), whatever its label."""

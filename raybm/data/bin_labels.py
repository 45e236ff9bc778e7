"""Numbers to labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raybm.data.step import Step


class BinLabels(Step):
    """A number column becomes `label` by the interval it falls into; a null label drops the row (undecided ratings, say)."""

    kind: Literal["bin_labels"] = "bin_labels"
    column: str
    edges: Annotated[tuple[float, ...], Field(min_length=1)]
    """Rising; interval i is edges[i-1] <= x < edges[i]."""
    labels: tuple[str | None, ...]
    """One more than edges."""

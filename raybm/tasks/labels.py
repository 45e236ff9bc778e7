"""What a list of labels in a task's settings has to be."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raybm.core.spec import Check

Smoothing = Annotated[float, Field(ge=0, lt=1)]
"""Share of the target probability (Szegedy et al. 2016, arXiv:1512.00567)."""

LABELS = Check(
    ("labels",),
    lambda labels: (
        ("a classifier needs two labels or more, each once.", "Name them all, or leave `labels` out.")
        if labels is not None and (len(labels) < 2 or len(set(labels)) < len(labels))
        else None
    ),
)

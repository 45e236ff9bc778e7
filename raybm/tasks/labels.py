"""What a list of labels in a task's settings has to be."""

from __future__ import annotations

from raybm.core.spec import Check

LABELS = Check(
    ("labels",),
    lambda labels: (
        ("a classifier needs two labels or more, each once.", "Name them all, or leave `labels` out.")
        if labels is not None and (len(labels) < 2 or len(set(labels)) < len(labels))
        else None
    ),
)

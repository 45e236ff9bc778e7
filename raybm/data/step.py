"""What the cleaning steps share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raybm.core.spec import Spec

if TYPE_CHECKING:
    import pandas as pd


class Step(Spec):
    """One cleaning step over blocks of rows. A frame has the standard columns and `_file`, `_line`, `_bad` (reason, or "")
    and `_drop` (name of the step that set the row aside, or ""); only rows with neither are shown to a step."""

    def group_by(self) -> str | None:
        """Name of a column whose equal values must meet in one frame (exact deduplication), or None for row-wise steps."""
        return None

    def apply(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with changed columns, or with `_bad` / `_drop` set. Keeps every row."""
        raise TypeError(f"{type(self).__name__} does nothing")

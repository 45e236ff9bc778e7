"""Numbers to labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from raybm.core.spec import Check
from raybm.data.step import Step

if TYPE_CHECKING:
    import pandas as pd


class BinLabels(Step):
    """A number column becomes `label` by the interval it falls into; a null label drops the row (undecided ratings, say)."""

    kind: Literal["bin_labels"] = "bin_labels"
    column: str
    """The number's column, by its standard name or one that `columns` maps."""
    edges: Annotated[tuple[float, ...], Field(min_length=1)]
    """Rising; interval i is edges[i-1] <= x < edges[i]."""
    labels: tuple[str | None, ...]
    """One more than edges."""

    PRODUCES: ClassVar[tuple[str, ...]] = ("label",)
    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(("edges",), lambda edges: ("the edges do not rise.", "Sort them.") if list(edges) != sorted(set(edges)) else None),
        Check(
            ("labels", "edges"),
            lambda labels, edges: (
                (f"{len(edges)} edges make {len(edges) + 1} intervals, and there are {len(labels)} labels.", "Name each.")
                if len(labels) != len(edges) + 1
                else None
            ),
        ),
    )

    def needs(self) -> tuple[str, ...]:
        return (self.column,)

    def apply(self, frame: pd.DataFrame) -> pd.DataFrame:
        import numpy as np
        import pandas as pd

        numbers = pd.to_numeric(frame[self.column], errors="coerce").to_numpy(dtype=float)
        known = ~np.isnan(numbers)
        names = np.array(self.labels, dtype=object)[np.searchsorted(np.array(self.edges), numbers, side="right")]
        names[~known] = None
        undecided = known & np.array([name is None for name in names])
        return frame.assign(
            label=pd.Series(names, index=frame.index, dtype=object),
            _bad=np.where(known, "", f"{self.column} is not a number"),
            _drop=np.where(undecided, self.kind, ""),
        )

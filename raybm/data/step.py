"""What the cleaning steps share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from raybm.core.spec import Spec

if TYPE_CHECKING:
    import pandas as pd


class Step(Spec):
    """One cleaning step over frames of rows (see `raybm.data.frame` for their columns). Rows that an earlier step or the
    reader set aside (`_bad`, `_drop`) are not shown to it."""

    PRODUCES: ClassVar[tuple[str, ...]] = ()
    """Standard columns that it makes, so that the files need not have them."""
    GROUPED: ClassVar[bool] = False
    """Whether rows with equal `key` must meet in one frame; such a frame is in the order of sources, files and rows. It is asked of parts
    of such frames before, so that what it drops there need not travel."""

    def needs(self) -> tuple[str, ...]:
        """Columns that it cannot work without."""
        return ()

    def key(self, frame: pd.DataFrame) -> Any:
        """A string a row, for grouped steps."""
        raise TypeError(f"{type(self).__name__} does not group")

    def apply(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with changed columns, or with `_bad` (reason) or `_drop` (this step's kind) set. Keeps every row."""
        raise TypeError(f"{type(self).__name__} does nothing")

"""Exact deduplication."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from raybm.data.frame import ORDER, content, joined
from raybm.data.step import Step

if TYPE_CHECKING:
    import pandas as pd


class ExactDedup(Step):
    """Keep the first of rows that are equal in `columns`, over all sources and splits (test rows never stand in training). Rows that have
    nothing in any of them are equal to none."""

    kind: Literal["exact_dedup"] = "exact_dedup"
    columns: tuple[str, ...] = ()
    """Default: all content of the row (texts, messages, tokens, image), whatever its label."""

    GROUPED: ClassVar[bool] = True

    def needs(self) -> tuple[str, ...]:
        return self.columns

    def key(self, frame: pd.DataFrame) -> Any:
        key = joined(frame, self.columns) if self.columns else content(frame)
        nothing = key.str.strip("\x1f") == ""
        return key.mask(nothing, "\x00" + joined(frame[nothing][ORDER].astype(str), ORDER)) if nothing.any() else key

    def apply(self, frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(_drop=self.key(frame).duplicated().map({True: self.kind, False: ""}))

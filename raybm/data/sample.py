"""A part of the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from raybm.data.frame import content, shares
from raybm.data.step import Step

if TYPE_CHECKING:
    import pandas as pd


class Sample(Step):
    """Keep about `share` of the rows, chosen by the digest of their content: the same every time, and a part of those of a larger share."""

    kind: Literal["sample"] = "sample"
    share: Annotated[float, Field(gt=0, le=1)]
    """Of the rows that come this far."""

    def apply(self, frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.assign(_drop="")
        frame.loc[shares(content(frame), "sample") >= self.share, "_drop"] = self.kind
        return frame

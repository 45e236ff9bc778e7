"""Unicode NFC and white space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from raybm.data.step import Step

if TYPE_CHECKING:
    import pandas as pd


class Normalize(Step):
    """Unicode normal form and white space: runs of blanks become one, control characters go; line breaks stay unless `lines` is join."""

    kind: Literal["normalize"] = "normalize"
    form: Literal["NFC", "NFKC"] = "NFC"
    lines: Literal["keep", "join"] = "keep"

    def apply(self, frame: pd.DataFrame) -> pd.DataFrame:
        raise TypeError("filled by the data room")

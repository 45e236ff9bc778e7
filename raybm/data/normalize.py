"""Unicode normal form and white space."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any, Literal

from raybm.data.frame import TEXTS, mapped
from raybm.data.step import Step

if TYPE_CHECKING:
    import pandas as pd

LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]+")
BLANKS = re.compile(r"[^\S\n]+")
AROUND_LINE_ENDS = re.compile(" ?\n ?")


class Normalize(Step):
    """Unicode normal form and white space: runs of blanks become one, control characters go; line breaks stay unless `lines` is join."""

    kind: Literal["normalize"] = "normalize"
    form: Literal["NFC", "NFKC"] = "NFC"
    """NFKC also turns full-width letters, ligatures and the like into plain ones."""
    lines: Literal["keep", "join"] = "keep"
    """join makes one line of several."""

    def apply(self, frame: pd.DataFrame) -> pd.DataFrame:
        changed: dict[str, Any] = {}
        for name in (*TEXTS, "label"):
            if name in frame:
                changed[name] = mapped(frame[name], self.clean)
        if "messages" in frame:
            changed["messages"] = mapped(frame["messages"], self._messages)
        return frame.assign(**changed)

    def clean(self, text: str) -> str:
        text = LINE_ENDS.sub("\n", unicodedata.normalize(self.form, text))
        text = CONTROLS.sub("", text)
        if self.lines == "join":
            return " ".join(text.split())
        return AROUND_LINE_ENDS.sub("\n", BLANKS.sub(" ", text)).strip()

    def _messages(self, messages: Any) -> Any:
        return [{"role": m["role"], "content": self.clean(m["content"])} for m in messages]

"""Every combination."""

from __future__ import annotations

from typing import Literal

from raybm.core.spec import Spec


class Grid(Spec):
    """Every combination of fields whose values can be listed (`choice`, `randint`), in order."""

    kind: Literal["grid"] = "grid"

    def build(self, seed: int) -> None:
        """Nothing samples: the points are listed."""

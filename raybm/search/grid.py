"""Every combination."""

from __future__ import annotations

from typing import ClassVar, Literal

from raybm.core.spec import Spec


class Grid(Spec):
    """Every combination of fields whose values can be listed (`choice`, `randint`), in order."""

    LEARNS: ClassVar[bool] = False  # from trials that another search made
    kind: Literal["grid"] = "grid"

    def build(self, seed: int) -> None:
        """Nothing samples: the points are listed."""

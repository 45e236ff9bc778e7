"""Population based training."""

from __future__ import annotations

from random import Random
from typing import Annotated, Any, Literal

from pydantic import Field

from raybm.search.population import Draws, Exchange, Member, Population
from raybm.search.space import Dimension


class Pbt(Population):
    """Population based training (Jaderberg et al. 2017, arXiv:1711.09846): members that fall behind go on from the weights of a better one,
    with its values made a little larger or smaller."""

    kind: Literal["pbt"] = "pbt"
    factors: Annotated[tuple[float, ...], Field(min_length=1)] = (0.8, 1.25)
    """One of these is a number multiplied by, within its range; of a choice, the one before or after is taken."""
    redraw: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Probability that a value is drawn anew instead."""

    def explored(self, donor: Member, exchange: Exchange) -> dict[str, Any]:
        return {name: self._other(dimension, name, donor.values[name], exchange.random) for name, dimension in exchange.space.items()}

    def _other(self, dimension: Dimension, name: str, value: Any, random: Random) -> Any:
        if random.random() < self.redraw:
            return dimension.draw(Draws(random), name)
        if dimension.choice is None:
            return dimension.scaled(value, random.choice(self.factors))
        place = list(dimension.choice).index(value) + random.choice((-1, 1))
        return dimension.choice[min(max(place, 0), len(dimension.choice) - 1)]

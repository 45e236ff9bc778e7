"""Populations: members that train side by side, of which the worst now and then go on from what the best have learnt, with other values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from raybm.core.spec import Spec
from raybm.search.space import Dimension


@dataclass(frozen=True)
class Member:
    """What was trained from one exchange to the next."""

    number: int
    values: dict[str, Any]
    """Path of a field → value."""
    cost: float | None
    """At its end, the lower the better; None where it failed."""
    parent: Member | None = None
    """What it went on from."""


@dataclass
class Exchange:
    """What is known when members are replaced."""

    space: Mapping[str, Dimension]
    generations: Sequence[Sequence[Member]]
    """From the first to the one that has just ended."""
    random: Random
    fresh: list[dict[str, Any]] = field(default_factory=list)
    """The values that were made in this exchange already."""


class Population(Spec):
    """All members train to the next exchange, then the worst share of them copies the checkpoints of members of the best share, and
    changes their values. What a field was at which step is written to `train.phases` of the best one's job, which can be trained again."""

    size: Annotated[int, Field(ge=2)] = 4
    """Members. They take turns where the cluster does not hold all of them."""
    every: PositiveInt = 1
    """Validations from one exchange to the next."""
    share: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Of the members that are replaced (one at least), and of those that replace them."""

    def following(
        self, space: Mapping[str, Dimension], generations: Sequence[Sequence[Member]], random: Random
    ) -> list[tuple[int, dict[str, Any]]]:
        """(number of the parent, values) of each member after an exchange, of which one at least did not fail. `generations`: all from
        the first to this one."""
        members = generations[-1]
        failed = [member for member in members if member.cost is None]
        ranked = sorted((member for member in members if member.cost is not None), key=lambda member: member.cost or 0.0)
        count = max(1, int(len(members) * self.share))
        best, others = ranked[:count], ranked[count:]
        behind = others[len(others) - min(len(others), max(0, count - len(failed))) :]
        going = {member.number for member in [*behind, *failed]}
        made: list[tuple[int, dict[str, Any]]] = []
        exchange = Exchange(space, generations, random)
        for member in members:
            if member.number in going:
                donor = random.choice(best)
                exchange.fresh.append(self.explored(donor, exchange))
                made.append((donor.number, exchange.fresh[-1]))
            else:
                made.append((member.number, member.values))
        return made

    @abstractmethod
    def explored(self, donor: Member, exchange: Exchange) -> dict[str, Any]:
        """Other values than the donor's."""


class Draws:
    """What `Dimension.draw` asks for a value, at random."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        return self.random.choice(choices)

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def suggest_float(self, name: str, low: float, high: float, log: bool = False) -> float:
        return low * (high / low) ** self.random.random() if log else self.random.uniform(low, high)

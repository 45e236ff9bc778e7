"""What values a sweep tries for which fields of the spec."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from statistics import NormalDist
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from raybm.core.spec import Check, Spec

NAMES = ("choice", "uniform", "loguniform", "randint", "normal")
PROBED = (0.0, 0.1, 0.37, 0.71, 1.0)  # of the way through a range
EDGE = 1e-6  # of a normal distribution's probability, left out at both ends


class Dimension(Spec):
    """The values of one field: one of the five. A plain list is short for `choice`."""

    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    """Any of these."""
    uniform: tuple[float, float] | None = None
    """A number between the two."""
    loguniform: tuple[float, float] | None = None
    """A number between the two, small ones as often as large ones."""
    randint: tuple[int, int] | None = None
    """An integer between the two, both among them."""
    normal: tuple[float, float] | None = None
    """Mean and standard deviation."""
    when: dict[str, Any] = {}
    """Path of a field → value (or list of values) that it must have; else this field stays as the job has it. Such as
    `{train.optimizer: adamw}`. Fields that are searched too stand above."""

    CHECKS: ClassVar[tuple[Check, ...]] = (Check(NAMES, lambda *values: _wrong(dict(zip(NAMES, values, strict=True))), where=""),)

    def draw(self, trial: Any, name: str) -> Any:
        """A value, suggested by an Optuna trial."""
        if self.choice is not None:  # as text: Optuna keeps scalars only
            return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in self.choice]))
        if self.randint is not None:
            return trial.suggest_int(name, *self.randint)
        if self.normal is not None:
            return NormalDist(*self.normal).inv_cdf(trial.suggest_float(name, EDGE, 1 - EDGE))
        if self.loguniform is not None:
            return trial.suggest_float(name, *self.loguniform, log=True)
        assert self.uniform is not None
        return trial.suggest_float(name, *self.uniform)

    def own(self, value: Any) -> list[Any]:
        """The value as it may be drawn (a spec keeps 1 as 1.0); nothing where it may not."""
        if self.choice is not None:
            return [each for each in self.choice if each == value and isinstance(each, bool) == isinstance(value, bool)][:1]
        if isinstance(value, bool) or not isinstance(value, int | float) or (self.randint and value != int(value)):
            return []
        fits = self.normal is not None or self._range()[0] <= value <= self._range()[1]
        return [int(value) if self.randint else value] if fits else []

    def share(self, value: Any) -> float:
        """Where a value of a range lies, from 0 to 1 (of a normal distribution: its probability); equal steps are alike."""
        if self.normal is not None:
            return NormalDist(*self.normal).cdf(value)
        low, high = self._range()
        return (math.log(value / low) / math.log(high / low)) if self.loguniform else (value - low) / (high - low)

    def value(self, share: float) -> Any:
        """The value that lies there."""
        if self.normal is not None:
            return NormalDist(*self.normal).inv_cdf(min(max(share, EDGE), 1 - EDGE))
        low, high = self._range()
        share = min(max(share, 0.0), 1.0)
        found = low * (high / low) ** share if self.loguniform else low + share * (high - low)
        return round(found) if self.randint else min(max(found, low), high)

    def scaled(self, value: Any, factor: float) -> Any:
        """A value of a range, so many times as large, as far as the range goes."""
        low, high = (self.value(0.0), self.value(1.0)) if self.normal else self._range()
        found = min(max(value * factor, low), high)
        return round(found) if self.randint else found

    def _range(self) -> tuple[float, float]:
        found = self.uniform or self.loguniform or self.randint
        assert found is not None
        return found

    def probes(self) -> tuple[Any, ...]:
        """Values that show whether the field takes what may be drawn: all of a choice, the ends of a range and some between."""
        return self.choice or self.randint or tuple(map(self.value, PROBED))

    def values(self) -> Sequence[Any] | None:
        """All of them, where they can be listed."""
        if self.randint is not None:
            return range(self.randint[0], self.randint[1] + 1)
        return self.choice


def _wrong(given: dict[str, Any]) -> tuple[str, str] | None:
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        return f"names {', '.join(named) or 'no values'}.", f"Give one of {', '.join(NAMES)}, or a list."
    (name,), (value,) = named, [given[named[0]]]
    if name == "normal":
        return None if value[1] > 0 else (f"a standard deviation of {value[1]:g}.", "It is above 0.")
    if name != "choice" and not value[0] < value[1]:
        return f"{name} from {value[0]:g} to {value[1]:g} holds nothing.", "The smaller one comes first."
    if name == "loguniform" and value[0] <= 0:
        return f"loguniform from {value[0]:g}.", "Logarithms need numbers above 0."
    return None


def _listed(value: Any) -> Any:
    return {"choice": value} if isinstance(value, list) else value


SpaceSpec = Annotated[dict[str, Annotated[Dimension, BeforeValidator(_listed)]], Field(min_length=1)]
Pick = Callable[[str, Dimension], Any]


def drawn(space: Mapping[str, Dimension], job: Mapping[str, Any], pick: Pick) -> dict[str, Any]:
    """Path → value, from above to below, for those whose `when` holds. `job`: the values of all other fields."""
    values: dict[str, Any] = {}
    for name, dimension in space.items():
        if all(_holds(values[path] if path in values else at(job, path), wanted) for path, wanted in dimension.when.items()):
            values[name] = pick(name, dimension)
    return values


def _holds(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list) else bool(value == wanted)


def points(space: Mapping[str, Dimension], job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination once, the last field turning fastest; of fields whose values can be listed."""
    seen: set[str] = set()
    values = [dimension.values() or () for dimension in space.values()]
    for combination in product(*values):
        chosen = dict(zip(space, combination, strict=True))
        point = drawn(space, job, lambda name, _, chosen=chosen: chosen[name])  # type: ignore[misc]
        if (key := json.dumps(point, sort_keys=True)) not in seen:
            seen.add(key)
            yield point


def probes(space: Mapping[str, Dimension]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, point): points in which one field takes a value that may be drawn, and those it depends on what it wants of them."""
    for name, dimension in space.items():
        for value in dimension.probes():
            wanted = {path: (wish[0] if isinstance(wish, list) else wish) for path, wish in dimension.when.items()}
            yield name, wanted | {name: value}


def at(job: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    node: Any = job
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def changed(job: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """The job's plain values with those of the point in their places."""
    made: dict[str, Any] = json.loads(json.dumps(job))
    for path, value in point.items():
        *parents, last = path.split(".")
        node = made
        for part in parents:
            if not isinstance(node.get(part), dict):
                node[part] = {}
            node = node[part]
        node[last] = value
    return made

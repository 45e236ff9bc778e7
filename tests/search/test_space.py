from __future__ import annotations

from typing import Any

import pytest

from raybm.core.errors import SpecError
from raybm.core.spec import Spec
from raybm.search import SpaceSpec, points
from raybm.search.space import Dimension, at, changed, probes


class Holder(Spec):
    space: SpaceSpec


def space(**dimensions: Any) -> Any:
    return Holder.parse({"space": {name.replace("__", "."): value for name, value in dimensions.items()}}).space


@pytest.mark.parametrize(
    ("dimension", "wrong"),
    [
        ({}, "names no values"),
        ({"uniform": [0, 1], "choice": [1]}, "names choice, uniform"),
        ({"uniform": [1, 1]}, "uniform from 1 to 1 holds nothing"),
        ({"randint": [4, 2]}, "randint from 4 to 2 holds nothing"),
        ({"loguniform": [0, 1]}, "loguniform from 0"),
        ({"normal": [0, 0]}, "a standard deviation of 0"),
        ({"choice": []}, "at least 1 item"),
        ({"unifrom": [0, 1]}, "Did you mean 'uniform'?"),
    ],
)
def test_mistakes(dimension: dict[str, Any], wrong: str) -> None:
    with pytest.raises(SpecError) as caught:
        space(lr=dimension)
    assert wrong in str(caught.value) and "space.lr" in str(caught.value)
    assert "space.lr.choice" not in str(caught.value) or dimension == {"choice": []}


def test_an_empty_space() -> None:
    with pytest.raises(SpecError, match="at least 1 item"):
        space()


def test_every_combination_once_and_conditions() -> None:
    found = list(
        points(space(a=[1, 2], b={"choice": ["x", "y"], "when": {"a": 2}}, c={"randint": [0, 1], "when": {"d": ["u", "v"]}}), {"d": "v"})
    )
    assert found == [
        {"a": 1, "c": 0},
        {"a": 1, "c": 1},
        {"a": 2, "b": "x", "c": 0},
        {"a": 2, "b": "x", "c": 1},
        {"a": 2, "b": "y", "c": 0},
        {"a": 2, "b": "y", "c": 1},
    ]
    assert list(points(space(a=[1, 2], c={"choice": [0, 1], "when": {"d": "u"}}), {"d": "v"})) == [{"a": 1}, {"a": 2}]


def test_what_is_probed() -> None:
    found = list(probes(space(a=[1, 2], b={"uniform": [0, 1], "when": {"a": [2, 3]}})))
    assert found[:2] == [("a", {"a": 1}), ("a", {"a": 2})] and {name for name, _ in found[2:]} == {"b"}
    drawn = [point["b"] for _, point in found[2:]]
    assert (drawn[0], drawn[-1]) == (0.0, 1.0) and any(0 < value < 1 for value in drawn) and {point["a"] for _, point in found[2:]} == {2}
    assert min(Dimension(normal=(1.0, 0.5)).probes()) < 0, "what may be drawn, if rarely"
    assert Dimension(normal=(1.0, 0.5)).scaled(3.3, 2.0) == Dimension(normal=(1.0, 0.5)).value(1.0)
    assert Dimension(randint=(1, 10**9)).values() == range(1, 10**9 + 1)


def test_paths() -> None:
    job = {"train": {"lr": 1, "zero": {"stage": 2}}, "model": {"lora": None}}
    made = changed(job, {"train.zero.stage": 3, "model.lora.rank": 4})
    assert made == {"train": {"lr": 1, "zero": {"stage": 3}}, "model": {"lora": {"rank": 4}}} and job["model"]["lora"] is None
    assert at(job, "train.zero.stage") == 2 and at(job, "train.lr.x") is None


@pytest.mark.parametrize(
    ("dimension", "value", "own"),
    [
        ({"choice": [1, 2]}, 2.0, [2]),  # as a spec keeps what is a number there
        ({"choice": [0, 0.1]}, 0.0, [0]),
        ({"choice": [0, 1]}, True, []),
        ({"choice": ["adamw", None]}, None, [None]),
        ({"randint": [1, 4]}, 4.0, [4]),
        ({"randint": [1, 4]}, 2.5, []),
        ({"uniform": [0, 1]}, 1.5, []),
        ({"loguniform": [0.1, 1]}, 0.5, [0.5]),
        ({"normal": [0, 1]}, -3.0, [-3.0]),
        ({"normal": [0, 1]}, None, []),
    ],
)
def test_a_value_from_elsewhere(dimension: dict[str, Any], value: Any, own: list[Any]) -> None:
    found = Dimension.parse(dimension).own(value)
    assert found == own and [type(each) for each in found] == [type(each) for each in own]

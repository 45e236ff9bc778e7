"""What every sampler and scheduler has to do, run over the unions."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from raybm.core.spec import Spec
from raybm.search import SamplerSpec, SchedulerSpec, SpaceSpec
from raybm.search.study import Study

SAMPLERS = get_args(get_args(SamplerSpec)[0])
SCHEDULERS = get_args(get_args(SchedulerSpec)[0])


class Holder(Spec):
    space: SpaceSpec


LISTED = {"lr": [1e-4, 1e-3, 1e-2], "kind": ["a", "b"], "depth": {"randint": [1, 2], "when": {"kind": "b"}}}
DRAWN = LISTED | {"lr": {"loguniform": [1e-5, 1e-1]}, "decay": {"uniform": [0, 0.1]}, "mean": {"normal": [0, 1]}}


def study(cls: Any, modes: tuple[str, ...] = ("min",)) -> Study:
    space = Holder.parse({"space": LISTED if cls.model_fields["kind"].default == "grid" else DRAWN}).space
    return Study(space, {}, cls().build(3), modes)


def tried(made: Study, many: int, score: Any) -> list[dict[str, Any]]:
    found = []
    while len(found) < many and (asked := made.ask()) is not None:
        made.tell(asked, "finished", score(asked.point))
        found.append(asked.point)
    return found


@pytest.mark.parametrize("cls", SAMPLERS)
def test_points_lie_in_the_space_and_come_again_with_the_seed(cls: Any) -> None:
    found = tried(study(cls), 14, lambda point: [point["lr"]])
    assert len(found) == (9 if cls.model_fields["kind"].default == "grid" else 14)
    for point in found:
        assert 1e-5 <= point["lr"] <= 1e-1 and point["kind"] in ("a", "b") and ("depth" in point) == (point["kind"] == "b")
    assert tried(study(cls), 14, lambda point: [point["lr"]]) == found


@pytest.mark.parametrize("cls", SAMPLERS)
def test_what_was_tried_before_is_asked_again_as_it_was(cls: Any) -> None:
    first = study(cls)
    point = first.ask()
    assert point is not None
    again = study(cls)
    asked = again.ask(point.point)
    assert asked is not None and asked.point == pytest.approx(point.point)
    again.tell(asked, "failed", None)
    following = again.ask()
    assert following is not None
    again.report(following, 0.5, 1)
    again.tell(following, "stopped", [0.5])


@pytest.mark.parametrize("cls", [each for each in SAMPLERS if each.model_fields["kind"].default != "cma_es"])
def test_several_objectives(cls: Any) -> None:
    assert tried(study(cls, ("min", "max")), 12, lambda point: [point["lr"], -point["lr"]])


@pytest.mark.parametrize("cls", SCHEDULERS)
def test_schedulers_build(cls: Any) -> None:
    assert cls().build("validation.loss", "min", "validations").metric == "validation.loss"

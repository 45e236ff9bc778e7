"""What every sampler and scheduler has to do, run over the unions."""

from __future__ import annotations

import math
from random import Random
from typing import Any, get_args

import pytest

from raybm.core.spec import Spec
from raybm.search import Member, Population, SamplerSpec, SchedulerSpec, SpaceSpec
from raybm.search.random import Random as RandomSampler
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


@pytest.mark.parametrize("cls", [cls for cls in SAMPLERS if cls.LEARNS])
def test_one_that_learns_from_another_search_begins_near_its_best(cls: Any) -> None:
    def distance(point: dict[str, Any]) -> float:
        return abs(math.log10(point["lr"] / 1e-3))

    taught = study(cls)
    for point in tried(study(RandomSampler), 30, lambda point: [distance(point)]):
        taught.learn(point, [distance(point)])
    near, far = (tried(made, 5, lambda point: [distance(point)]) for made in (taught, study(cls)))
    assert sum(map(distance, near)) < 0.5 * sum(map(distance, far))


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


@pytest.mark.parametrize("cls", [each for each in SCHEDULERS if not issubclass(each, Population)])
def test_schedulers_that_stop_build(cls: Any) -> None:
    assert cls().build("validation.loss", "min", "validations").metric == "validation.loss"


@pytest.mark.parametrize("cls", [each for each in SCHEDULERS if issubclass(each, Population)])
def test_populations_stay_in_the_space_and_come_again_with_the_seed(cls: Any) -> None:
    space = Holder.parse({"space": {"lr": {"loguniform": [1e-5, 1e-1]}, "decay": {"uniform": [0, 0.1]}}}).space

    def lived(seed: int) -> list[list[dict[str, Any]]]:
        random = Random(seed)
        generations = [[Member(n, {"lr": 10**-n, "decay": n / 100}, float(n)) for n in range(1, 5)]]
        for _ in range(4):
            members = [member for generation in generations for member in generation]
            following = cls(share=0.5).following(space, generations, random)
            assert len(following) == 4 and {number for number, _ in following} <= {member.number for member in generations[-1]}
            made = [Member(len(members) + n + 1, values, values["lr"], members[number - 1]) for n, (number, values) in enumerate(following)]
            generations.append(made)
        return [[member.values for member in generation] for generation in generations]

    found = lived(3)
    assert found == lived(3)
    assert all(1e-5 <= values["lr"] <= 1e-1 and 0 <= values["decay"] <= 0.1 for generation in found for values in generation)

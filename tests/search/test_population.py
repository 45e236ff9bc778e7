from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from raybm.search.pb2 import Pb2
from raybm.search.pbt import Pbt
from raybm.search.population import Exchange, Member
from tests.search.test_space import space

LR = space(train__lr={"loguniform": [1e-4, 1e-1]})


def members(*costs: float | None, first: int = 1, lr: float = 1e-2, parents: Sequence[Member] = ()) -> list[Member]:
    return [
        Member(first + place, {"train.lr": lr * (1 + place)}, cost, parents[place] if parents else None) for place, cost in enumerate(costs)
    ]


@pytest.mark.parametrize(
    ("costs", "share", "parents"),
    [
        ((4.0, 1.0, 2.0, 3.0), 0.25, [2, 2, 3, 4]),
        ((4.0, 1.0, None, 3.0), 0.25, [1, 2, 2, 4]),  # who failed is replaced instead of the worst
        ((None, None, 1.0, None), 0.25, [3, 3, 3, 3]),
        ((2.0, 1.0), 0.5, [2, 2]),
    ],
)
def test_the_worst_go_on_from_the_best(costs: tuple[float | None, ...], share: float, parents: list[int]) -> None:
    generation = members(*costs)
    following = Pbt(size=len(costs), share=share).following(LR, [generation], Random(0))
    assert [number for number, _ in following] == parents
    for place, (number, values) in enumerate(following):
        kept = number == place + 1
        assert (values == generation[place].values) == kept


def test_pbt_multiplies_within_the_range_or_draws_anew() -> None:
    donor = members(1.0, lr=9e-2)[0]
    scaled = {Pbt(redraw=0).explored(donor, Exchange(LR, [], Random(seed)))["train.lr"] for seed in range(20)}
    assert sorted(scaled) == pytest.approx([9e-2 * 0.8, 1e-1])
    drawn = {Pbt(redraw=1).explored(donor, Exchange(LR, [], Random(seed)))["train.lr"] for seed in range(20)}
    assert len(drawn) == 20 and all(1e-4 <= lr <= 1e-1 for lr in drawn)
    levels = space(train__l1=[0.0, 0.1, 0.2], train__weight_decay={"randint": [1, 9]})
    steps = [
        Pbt(redraw=0).explored(Member(1, {"train.l1": 0.1, "train.weight_decay": 5}, 1.0), Exchange(levels, [], Random(s)))
        for s in range(9)
    ]
    assert {values["train.l1"] for values in steps} == {0.0, 0.2} and {values["train.weight_decay"] for values in steps} == {4, 6}


def test_pb2_goes_where_the_metric_gained() -> None:
    """Small rates gained, large ones lost: the next ones are small, and not all the same."""
    first = [Member(n + 1, {"train.lr": 10 ** (-4 + n / 2)}, 1.0) for n in range(6)]
    second = [Member(n + 7, {"train.lr": 10 ** (-4 + n / 2)}, 0.5 + n / 6, first[n]) for n in range(6)]
    found = Pb2(size=6, share=0.5).following(LR, [first, second], Random(0))
    made = [values["train.lr"] for place, (number, values) in enumerate(found) if number != second[place].number]
    assert len(set(made)) == 3 and all(1e-4 <= lr < 3e-3 for lr in made)


def test_pb2_draws_where_it_has_seen_nothing() -> None:
    found = Pb2().following(LR, [members(1.0, 2.0, 3.0, 4.0)], Random(0))
    assert [number for number, _ in found] == [1, 2, 3, 1] and 1e-4 <= found[3][1]["train.lr"] <= 1e-1


@pytest.mark.parametrize("dimension", [{"uniform": [1, 3]}, {"loguniform": [1e-5, 10]}, {"normal": [2, 1]}, {"randint": [1, 9]}])
def test_shares_of_a_range(dimension: dict[str, list[float]]) -> None:
    found = space(x=dimension)["x"]
    assert found.share(found.value(0.25)) == pytest.approx(0.25, abs=0.07)
    assert found.share(found.value(0.0)) == pytest.approx(0, abs=1e-5) and found.share(found.value(1.0)) == pytest.approx(1, abs=1e-5)

"""ASHA by promotion: which trials pause, and which go on."""

from __future__ import annotations

from pathlib import Path

from raybm.sweep.points import Point
from raybm.sweep.search import Search
from raybm.sweep.trial import Trial
from tests.sweep.test_search import search

PROMOTED = {
    "space": {"train.lr": [0.1, 0.2, 0.3, 0.4]},
    "sampler": {"kind": "grid"},
    "scheduler": {"kind": "asha", "type": "promotion", "reduction": 2},
}


def to_the_rung(found: Search, following: tuple[Point, Trial], length: int = 4) -> tuple[int, int]:
    """Trains what `next` gave, the better the higher its rate, as far as it is to go or is long. Its number, and how far."""
    point, trial = following
    goal = found.until(trial)
    assert goal is not None
    for time in range(int(trial.metrics.get("validations", 0)) + 1, min(goal, length) + 1):
        trial = found.reported(point, trial, {"validations": time, "validation.loss": 2 - trial.values["train.lr"] - time / 100})
    found.ended(point, trial.model_copy(update={"end": "finished" if goal >= length else "stopped"}))
    return trial.point, goal


def test_trials_pause_until_they_are_promoted(tmp_path: Path) -> None:
    found, done = search(tmp_path, PROMOTED), []
    while (following := found.next()) is not None:
        done.append(to_the_rung(found, following))
    assert done == [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 4), (4, 1), (4, 2), (4, 4)] and not found.more
    assert [point.end for point in found.points] == ["stopped", "stopped", "finished", "finished"]
    assert found.winner().train.lr == 0.4


def test_one_that_is_ended_at_its_rung_comes_to_it_once_more(tmp_path: Path) -> None:
    """It would go on unpromoted where it counted as one on its way to the next."""
    found = search(tmp_path, PROMOTED)
    following = found.next()
    assert following is not None and found.until(following[1]) == 1
    point, trial = following
    found.cut(point, found.reported(point, trial, {"validations": 1, "validation.loss": 1.0}))
    again = search(tmp_path, PROMOTED, "again")
    following = again.next()
    assert following is not None and following[1].name == trial.name and again.until(following[1]) == 1


def test_what_runs_is_waited_for_and_the_best_of_few_goes_on(tmp_path: Path) -> None:
    found = search(tmp_path, PROMOTED | {"budget": {"trials": 2}, "scheduler": {"kind": "asha", "type": "promotion"}})
    first, second = found.next(), found.next()
    assert first is not None and second is not None and found.next() is None
    to_the_rung(found, second)
    assert found.next() is None  # the first may be better, and a third of two is none
    to_the_rung(found, first)
    again = search(tmp_path, PROMOTED | {"budget": {"trials": 2}, "scheduler": {"kind": "asha", "type": "promotion"}}, "again")
    assert [point.end for point in again.points] == ["stopped"] * 2 and again.more and len(again.before) == 2
    following = again.next()
    assert following is not None and to_the_rung(again, following) == (2, 3) and len(again.before) == 1
    following = again.next()
    assert following is not None and to_the_rung(again, following) == (2, 9) and again.next() is None and not again.more
    assert [at["validations"] for at in again.points[1].trials[0].curve] == [1, 2, 3, 4] and again.winner().train.lr == 0.2


def test_one_that_was_trained_past_its_rung_is_compared_by_what_is_known(tmp_path: Path) -> None:
    found = search(tmp_path, PROMOTED)
    following = found.next()
    assert following is not None
    metrics = {"validations": 3.0, "validation.loss": 0.1}
    found.ended(following[0], following[1].model_copy(update={"end": "stopped", "metrics": metrics}))
    done = []
    while (following := found.next()) is not None:
        done.append(to_the_rung(found, following))
    assert done == [(2, 1), (3, 1), (4, 1), (4, 2), (1, 4)] and found.points[0].trials[0].curve[0] == metrics


def test_seeds_are_promoted_together(tmp_path: Path) -> None:
    found, done = search(tmp_path, PROMOTED | {"repeats": 2, "budget": {"trials": 2}}), []
    while (following := found.next()) is not None:
        done.append((*to_the_rung(found, following), following[1].repeat))
    assert done == [(1, 1, 0), (1, 1, 1), (2, 1, 0), (2, 1, 1), (2, 2, 0), (2, 2, 1), (2, 4, 0), (2, 4, 1)]
    assert [point.end for point in found.points] == ["stopped", "finished"]


def test_the_sampler_knows_the_mean_of_seeds_that_paused(tmp_path: Path) -> None:
    found = search(tmp_path, PROMOTED | {"repeats": 2, "sampler": {"kind": "tpe"}})
    for _ in range(5):
        following = found.next()
        assert following is not None
        to_the_rung(found, following)
    first = found.study.study.trials[0]
    assert first.state.name == "PRUNED" and first.intermediate_values == {1: 1.99 - found.points[0].trials[0].values["train.lr"]}


def test_a_seed_that_a_killed_run_had_promoted_waits_for_the_others(tmp_path: Path) -> None:
    sweep = PROMOTED | {"repeats": 2, "budget": {"trials": 2}}
    found, done = search(tmp_path, sweep), []
    while len(done) < 5 and (following := found.next()) is not None:
        done.append((*to_the_rung(found, following), following[1].repeat))
    assert done[-1] == (2, 2, 0)
    again = search(tmp_path, sweep, "again")
    while (following := again.next()) is not None:
        done.append((*to_the_rung(again, following), following[1].repeat))
    assert done[5:] == [(2, 2, 1), (2, 4, 0), (2, 4, 1)]


def test_a_seed_that_ended_by_itself_keeps_its_score(tmp_path: Path) -> None:
    found, done = search(tmp_path, PROMOTED | {"repeats": 2, "budget": {"trials": 2}}), []
    while (following := found.next()) is not None:
        length = 2 if following[1].repeat else 4
        done.append((*to_the_rung(found, following, length), following[1].repeat))
    assert done[4:] == [(2, 2, 0), (2, 2, 1), (2, 4, 0)] and found.points[1].end == "finished"

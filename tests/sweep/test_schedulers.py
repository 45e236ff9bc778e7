"""Schedulers of Ray Tune, told of what was before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raybm.search import Asha, Population
from raybm.search.hyperband import HyperBand
from raybm.spec.sweep import TIME
from raybm.sweep.tuning import recall
from tests.sweep.test_search import GRID, search

HERE: Any = SimpleNamespace()  # Tune's controller, which none of them asks


class Newcomer:
    trial_id = "new"
    config = {"name": "00009-0"}


@pytest.mark.parametrize("scheduler", [{"kind": "asha"}, {"kind": "hyperband", "brackets": 2}, {"kind": "median", "grace": 1, "others": 2}])
def test_schedulers_compare_with_what_was_before(tmp_path: Path, scheduler: dict[str, Any]) -> None:
    """Also with what would be stopped today, and with what went on to its end."""
    wanted = GRID | {"space": {"train.lr": [0.1, 0.2, 0.3], "train.global_batch": [8, 16, 32]}, "scheduler": scheduler}
    first = search(tmp_path, wanted)
    for losses in ([0.5, 0.4, 0.3], [0.6], [0.7, 0.6, 0.5], [0.9, 0.9, 0.9, 0.3], [0.5], [0.6], [0.4], [0.3]):
        following = first.next()
        assert following is not None
        point, trial = following
        for time, loss in enumerate(losses, 1):
            trial = first.reported(point, trial, {"validations": float(time), "validation.loss": loss})
        first.ended(point, trial.model_copy(update={"end": "finished" if len(losses) > 1 else "stopped"}))
    for loss, decision in ((2.0, "STOP"), (0.1, "CONTINUE")):
        again = search(tmp_path, wanted, run="again")
        assert again.spec.scheduler is not None and not isinstance(again.spec.scheduler, Population)
        made = again.spec.scheduler.build("validation.loss", "min", TIME)
        recall(made, again)
        newcomer: Any = Newcomer()
        made.on_trial_add(HERE, newcomer)
        told = "CONTINUE"
        for at in (1.0, 2.0, 3.0):
            told = made.on_trial_result(HERE, newcomer, {"validations": at, "validation.loss": loss})
            if told == "STOP":
                break
        assert told == decision


@pytest.mark.parametrize("scheduler", [Asha(), HyperBand(brackets=1)])
def test_the_later_scores_of_a_trial_that_goes_on_are_none_of_earlier_rungs(scheduler: Asha | HyperBand) -> None:
    """Tune would take them for those, and stop newcomers that do as well as it did at their age."""
    made: Any = scheduler.build("validation.loss", "min", TIME)
    for name, curve in {"a": [2.0], "b": [2.1], "c": [2.2], "later": [0.9, 0.8, 0.7]}.items():
        trial: Any = SimpleNamespace(trial_id=name, config={"name": name})
        made.on_trial_add(HERE, trial)
        for at, loss in enumerate(curve, 6 if name == "later" else 1):
            made.on_trial_result(HERE, trial, {"validations": float(at), "validation.loss": loss})
        made.on_trial_complete(HERE, trial, {"validations": float(at), "validation.loss": curve[-1]})
    newcomer: Any = Newcomer()
    made.on_trial_add(HERE, newcomer)
    assert made.on_trial_result(HERE, newcomer, {"validations": 1.0, "validation.loss": 1.9}) == "CONTINUE"


def test_a_trial_is_dealt_to_the_same_bracket_again() -> None:
    def dealt() -> list[int]:
        made: Any = HyperBand(brackets=3).build("validation.loss", "min", TIME)
        trials = [SimpleNamespace(trial_id=str(number), config={"name": f"{number:05d}-0"}) for number in range(60)]
        for trial in trials:
            made.on_trial_add(None, trial)
        return [made._brackets.index(made._trial_info[trial.trial_id]) for trial in trials]

    assert dealt() == dealt() and set(dealt()) == {0, 1, 2}

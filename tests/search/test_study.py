from __future__ import annotations

import math

import pytest
from optuna.trial import TrialState

from raybm.search.gp import Gp
from raybm.search.study import Study
from raybm.search.tpe import Tpe
from tests.search.test_space import space

LR = space(train__lr={"loguniform": [1e-5, 1.0]})
CLIFF = 1e-2
"""From this learning rate on a training diverges; below, the faster the better."""


@pytest.mark.parametrize("sampler", [Gp(), Tpe()])
def test_what_fails_is_kept_away_from(sampler: Gp | Tpe) -> None:
    study, failed = Study(LR, {}, sampler.build(0), ["min"]), []
    for _ in range(22):
        asked = study.ask()
        assert asked is not None
        rate = asked.point["train.lr"]
        failed.append(rate > CLIFF)
        study.tell(asked, *(("failed", None) if rate > CLIFF else ("finished", [-math.log10(rate)])))
    assert sum(failed[16:]) <= 2, "without what failed, 5 of these 6"


def test_what_fails_says_nothing_of_what_matters() -> None:
    study = Study(LR | space(train__weight_decay={"uniform": [0.0, 1.0]}), {}, Gp().build(0), ["min"])
    for rate, decay in ((1e-4, 0.1), (1e-4, 0.5), (1e-4, 0.9), (1e-3, 0.2), (1e-3, 0.6), (1e-3, 0.8), (0.5, 0.1), (0.9, 0.1)):
        asked = study.ask({"train.lr": rate, "train.weight_decay": decay})
        assert asked is not None
        study.tell(asked, *(("failed", None) if rate > CLIFF else ("finished", [decay])))
    assert [trial.value for trial in study.study.trials[-2:]] == [0.9, 0.9] and study.importance()["train.weight_decay"] > 0.9


def test_tpe_ranks_what_fails_behind_what_paused() -> None:
    study = Study(LR, {}, Tpe().build(0), ["min"])
    paused, burnt = study.ask({"train.lr": 1e-4}), study.ask({"train.lr": 1e-1})
    assert paused is not None and burnt is not None
    study.report(paused, 3.0, 1)
    study.tell(paused, "stopped", None)
    study.report(burnt, 0.5, 2)  # before its loss was no number
    study.tell(burnt, "failed", None)
    told = [(trial.state, trial.intermediate_values) for trial in study.study.trials]
    assert told == [(TrialState.PRUNED, {1: 3.0}), (TrialState.FAIL, {2: 0.5}), (TrialState.PRUNED, {})]

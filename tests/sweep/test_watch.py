"""Trials that Tune gave up without a word are begun again, those whose end was only not told yet are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raybm.sweep import tuning


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(tuning.time, "monotonic", made)
    return made


def watch(*ended: str) -> tuple[tuning.Watch, list[str], list[str]]:
    """Of two trials that run for all that the search knows; which were begun again, and what was said."""
    begun: list[str] = []
    said: list[str] = []
    running = {name: (SimpleNamespace(), SimpleNamespace(point=number)) for number, name in enumerate(("one", "two"), start=1)}

    def again(trial_id: str) -> None:
        del running[trial_id]
        begun.append(trial_id)

    asking: Any = SimpleNamespace(running=running, again=again, search=SimpleNamespace(context=SimpleNamespace(progress=said.append)))
    made = tuning.Watch(asking, None)
    made.on_step_begin(1, [SimpleNamespace(trial_id=name, is_finished=lambda name=name: name in ended) for name in running])
    return made, begun, said


def test_a_trial_that_was_given_up_is_begun_again_once(clock: Clock) -> None:
    made, begun, said = watch("one")
    made.regain()
    assert begun == []
    for _ in range(2):
        clock.now += tuning.HEARTBEAT_S + 1
        made.regain()
    assert begun == ["one"]
    assert said == ["  point 1: its process could not be used again; it gets another"]


def test_an_end_that_is_told_a_moment_later_is_an_end(clock: Clock) -> None:
    made, begun, said = watch("two")
    made.regain()
    made.asking.running.pop("two")
    clock.now += tuning.HEARTBEAT_S + 1
    made.regain()
    assert (begun, said) == ([], [])

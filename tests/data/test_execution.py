"""Ray Data as it is used here: what a task yields goes on at once, and what fails is told by an error of ours."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from raybm.core.errors import DeadlineExceeded, RaybmError
from raybm.data import execution
from raybm.data.execution import batches, from_items

pytestmark = pytest.mark.integration
STALL_S = 5.0


def slow(table: Any, pause_s: float, times: int) -> Iterator[dict[str, list[Any]]]:
    for number in range(times):
        time.sleep(pause_s)
        yield {"made": [number]}


def dies(table: Any) -> dict[str, list[Any]]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def ran(function: Any, **arguments: Any) -> Iterator[int]:
    data = from_items(["one"]).map_batches(function, fn_kwargs=arguments, batch_size=None, batch_format="pyarrow", max_retries=0)
    for table in batches(data, "here"):
        assert len(table) == 1
        yield from table.column("made").to_pylist()


def test_a_slow_task_is_no_stall_while_it_yields(ray_session: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(ran(slow, pause_s=0.0, times=1)) == [0]  # Ray has a process for it from now on
    monkeypatch.setattr(execution, "STALL_TIMEOUT_S", STALL_S)
    assert list(ran(slow, pause_s=STALL_S / 5, times=8)) == list(range(8))
    with pytest.raises(DeadlineExceeded, match="nothing has finished for 5 s"):
        list(ran(slow, pause_s=2 * STALL_S, times=1))


def test_a_killed_process_is_told_by_an_error_of_ours(ray_session: str) -> None:
    with pytest.raises(RaybmError, match="process of Ray's was lost: WorkerCrashedError") as error:
        list(ran(dies))
    assert error.value.where == "here" and error.value.remedy

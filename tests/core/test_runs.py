from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raybm.core import runs
from raybm.core.errors import DataError, NotFound
from raybm.core.events import Events, by_step, read_events
from raybm.core.storage import open_storage
from tests.elsewhere import Elsewhere


def test_cancel_reaches_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "HEARTBEAT_S", 0.02)
    storage, noticed = open_storage(str(tmp_path)), threading.Event()
    run = runs.Run(storage, "job", {"name": "job"}, on_cancel=noticed.set)
    assert runs.cancel(storage, run.id).state == "running"
    assert noticed.wait(5)
    run.close(state="cancelled")
    assert runs.read_state(storage, run.id).shown == "cancelled"
    runs.cancel(storage, run.id)  # asking again changes nothing


def test_files_are_brought_to_a_far_storage_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(runs, "HEARTBEAT_S", 0.02)
    far = Elsewhere(tmp_path / "far")
    run = runs.Run(far, "job", {}, on_cancel=lambda: None)
    (run.folder / "log.txt").write_text("one")
    (run.folder / "tensorboard").mkdir()
    (run.folder / "tensorboard" / "events").write_text("numbers")
    _until(lambda: run.storage.exists("log.txt") and run.storage.exists("tensorboard/events"))
    with (run.folder / "log.txt").open("a") as file:
        file.write(" two")
    run.close()
    assert run.storage.read("log.txt") == b"one two"
    assert far.did.count("write tensorboard/events") == 1 and far.did.count("write log.txt") <= 3


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_quiet_run_is_shown_as_lost(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    run = runs.Run(storage, "job", {}, on_cancel=lambda: None)
    run.close()
    state = runs.read_state(storage, run.id)
    assert state.shown == "running"
    assert state.model_copy(update={"heartbeat": time.time() - runs.LOST_S - 1}).shown == "lost"


@pytest.mark.parametrize("torn", [b"", b'{"run"', b'{"run": "x", "of": "another version"}', b"\xff"])
def test_a_state_that_cannot_be_read_hides_no_other(tmp_path: Path, torn: bytes) -> None:
    storage = open_storage(str(tmp_path))
    run = runs.Run(storage, "job", {}, on_cancel=lambda: None)
    run.close(state="succeeded")
    storage.write("runs/torn/state.json", torn)
    assert [state.run for state in runs.states(storage)] == [run.id]
    with pytest.raises(DataError, match=r"torn: its state\.json"):
        runs.read_state(storage, "torn")


def test_an_unknown_run_names_those_there_are(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    run = runs.Run(storage, "job", {}, on_cancel=lambda: None)
    run.close(state="succeeded")
    with pytest.raises(NotFound, match=run.id):
        runs.read_state(storage, "nope")


def test_events_survive_a_torn_line_and_count_the_last_of_a_step(tmp_path: Path) -> None:
    events = Events(tmp_path)
    for loss in (3.0, 2.0):
        events.emit("train", step=1, loss=loss)
    events.emit("validate", step=1, loss=9.0)
    with events.path.open("a") as stream:
        stream.write('{"kind": "train", "step": 2')
    assert [event["loss"] for event in by_step(read_events(events.path), "train")] == [2.0]

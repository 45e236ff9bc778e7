from __future__ import annotations

import json
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from raybm.core import lease
from raybm.core.errors import Conflict, DeadlineExceeded
from raybm.core.lease import Lease
from raybm.core.storage import Storage, open_storage


def holder(pid: int, host: str, age_s: float) -> bytes:
    return json.dumps({"holder": "other", "host": host, "pid": pid, "time": time.time() - age_s}).encode()


def take(storage: Storage, name: str, timeout_s: float) -> Lease:
    return Lease(storage, name, timeout_s, lambda text: None, lambda lost: None)


def test_of_two_at_once_one_waits(tmp_path: Path) -> None:
    storage, said = open_storage(str(tmp_path)), []
    with (
        Lease(storage, "first", 1.0, said.append, said.append),
        pytest.raises(DeadlineExceeded, match="another run"),
        Lease(storage, "second", 0.5, said.append, said.append),
    ):
        pass
    assert len(said) == 1
    with take(storage, "second", 0.0):
        assert lease.held(storage)
    assert not lease.held(storage)


def test_takes_over_from_a_dead_process_at_once(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    storage.create(lease.KEY, holder(ended.pid, platform.node(), age_s=0))
    with take(storage, "me", 0.0):
        assert json.loads(storage.read(lease.KEY))["holder"] == "me"


def test_takes_over_from_a_quiet_host_and_not_from_a_lively_one_whatever_its_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "POLL_S", 0.02)
    monkeypatch.setattr(lease, "QUIET_S", 0.5)
    storage = open_storage(str(tmp_path))
    storage.create(lease.KEY, holder(1, "elsewhere", age_s=0))
    done = threading.Event()

    def renew() -> None:
        while not done.wait(0.02):
            storage.write(lease.KEY, holder(1, "elsewhere", age_s=3600))

    renewing = threading.Thread(target=renew)
    renewing.start()
    with pytest.raises(DeadlineExceeded), take(storage, "me", 1.0):
        pass
    done.set()
    renewing.join()
    with take(storage, "me", 10.0):
        assert json.loads(storage.read(lease.KEY))["holder"] == "me"


def test_who_was_taken_over_learns_of_it_and_leaves_the_other_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.02)
    storage, noticed, reasons = open_storage(str(tmp_path)), threading.Event(), []

    def on_lost(why: Conflict) -> None:
        reasons.append(why)
        noticed.set()

    with Lease(storage, "me", 0.0, print, on_lost) as mine:
        mine.renew()
        ends = time.monotonic() + 30
        while not noticed.wait(0.5) and time.monotonic() < ends:  # the other one renews, too, over what was just being renewed here
            storage.write(lease.KEY, holder(1, "elsewhere", age_s=0))  # while this process was suspended
        assert noticed.is_set()
        with pytest.raises(Conflict, match="taken over"):
            mine.renew()
    assert len(reasons) == 1 and json.loads(storage.read(lease.KEY))["holder"] == "other"

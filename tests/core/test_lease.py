from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raybm.core import lease
from raybm.core.errors import DeadlineExceeded
from raybm.core.lease import Lease
from raybm.core.storage import open_storage


def holder(pid: int, host: str, age_s: float) -> bytes:
    return json.dumps({"holder": "other", "host": host, "pid": pid, "time": time.time() - age_s}).encode()


def test_of_two_at_once_one_waits(tmp_path: Path) -> None:
    storage, said = open_storage(str(tmp_path)), []
    with (
        Lease(storage, "first", 1.0, said.append),
        pytest.raises(DeadlineExceeded, match="another run"),
        Lease(storage, "second", 0.5, said.append),
    ):
        pass
    assert len(said) == 1
    with Lease(storage, "second", 0.5, said.append):
        assert storage.exists(lease.KEY)
    assert not storage.exists(lease.KEY)


def test_takes_over_from_a_dead_process_at_once(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    storage.create(lease.KEY, holder(ended.pid, platform.node(), age_s=0))
    with Lease(storage, "me", 0.0, print):
        assert json.loads(storage.read(lease.KEY))["holder"] == "me"


def test_takes_over_from_a_quiet_host_and_not_from_a_lively_one(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.create(lease.KEY, holder(1, "elsewhere", age_s=1))
    with pytest.raises(DeadlineExceeded), Lease(storage, "me", 0.0, print):
        pass
    storage.write(lease.KEY, holder(1, "elsewhere", age_s=lease.QUIET_S + 1))
    with Lease(storage, "me", 0.0, print):
        pass

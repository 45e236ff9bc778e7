from __future__ import annotations

import subprocess
import sys

from raybm.training.watchdog import EXIT_CODE

STUCK = """
import threading
from raybm.training.watchdog import Watchdog
with Watchdog(0.4):
    threading.Event().wait(60)
"""
MOVING = """
import time
from raybm.training.watchdog import Watchdog
with Watchdog(2.0) as watchdog:
    for _ in range(3):
        time.sleep(0.05)
        watchdog.alive()
"""


def test_ends_a_process_that_stands_still() -> None:
    stuck = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=30, check=False)
    assert stuck.returncode == EXIT_CODE
    assert "no step for" in stuck.stderr
    assert "in <module>" in stuck.stderr  # where it stood


def test_lets_a_moving_process_go() -> None:
    assert subprocess.run([sys.executable, "-c", MOVING], timeout=30, check=False).returncode == 0

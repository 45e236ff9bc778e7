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


PATIENT = """
import time
from raybm.training.watchdog import Watchdog
with Watchdog(0.4) as watchdog:
    with watchdog.within(30.0):
        time.sleep(1.5)
    watchdog.alive()
    print("whole", flush=True)
    time.sleep(30)
"""


def test_ends_a_process_that_stands_still() -> None:
    stuck = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=30, check=False)
    assert stuck.returncode == EXIT_CODE
    assert "nothing moved for" in stuck.stderr
    assert "in <module>" in stuck.stderr  # where it stood


def test_lets_a_moving_process_go() -> None:
    assert subprocess.run([sys.executable, "-c", MOVING], timeout=30, check=False).returncode == 0


def test_one_thing_may_take_longer() -> None:
    patient = subprocess.run([sys.executable, "-c", PATIENT], capture_output=True, text=True, timeout=60, check=False)
    assert patient.stdout == "whole\n"
    assert patient.returncode == EXIT_CODE, "after it, no longer than before"

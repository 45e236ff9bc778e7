"""Ends a rank that has stopped moving, so that the group is started again instead of waiting for ever."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)
EXIT_CODE = 75


class Watchdog:
    """Within its `with`, the process ends with EXIT_CODE when `alive` is not called for `timeout_s`.
    Where each thread stood goes to stderr."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._last = time.monotonic()
        self._done = threading.Event()

    def alive(self) -> None:
        self._last = time.monotonic()

    @contextmanager
    def within(self, timeout_s: float) -> Iterator[None]:
        """One thing that may take so long, whatever the steps may."""
        usual = self.timeout_s
        self.alive()
        self.timeout_s = timeout_s
        try:
            yield
        finally:
            self.alive()
            self.timeout_s = usual

    def __enter__(self) -> Self:
        self.alive()
        threading.Thread(target=self._watch, daemon=True, name="raybm-watchdog").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self.timeout_s / 4)):
            if time.monotonic() - self._last > self.timeout_s:
                log.error("nothing moved for %.0f s; this rank ends so that the group can be started again", self.timeout_s)
                faulthandler.dump_traceback()
                os._exit(EXIT_CODE)

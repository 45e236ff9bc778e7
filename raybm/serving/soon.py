"""Work that a request leaves behind, done for many requests at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context


class Soon:
    """Does its work `seconds` after it is first asked for, once for all who ask until then; at once where no event loop runs."""

    def __init__(self, seconds: float, work: Callable[[], None]) -> None:
        self._seconds, self._work = seconds, work
        self._loop: asyncio.AbstractEventLoop | None = None  # that will do it

    def __call__(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._work()
            return
        if loop is not self._loop:
            self._loop = loop
            loop.call_later(self._seconds, self._now, context=Context())  # on behalf of no single request

    def _now(self) -> None:
        self._loop = None
        self._work()

"""Where a replica's log lines go."""

from __future__ import annotations

import asyncio
import logging
from logging.handlers import MemoryHandler

ACCESS = "raybm.serving.access"
TOGETHER_S = 0.5
MOST = 1000  # lines


def log_with_serve() -> None:
    """Sends raybm's lines where Serve's own go (the replica's log file and stderr); Ray sets up only its own loggers. Lines about requests
    go to the file alone, since what stands on stderr is copied to another file, read there, and sent to whoever deployed; and many
    together, since one by one they took some 0.4 ms of each request."""
    handlers = logging.getLogger("ray.serve").handlers
    files = [Together(handler) for handler in handlers if type(handler) is not logging.StreamHandler]
    for name, takes in (("raybm", handlers), (ACCESS, files or handlers)):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = list(takes)
        logger.propagate = False


class Together(MemoryHandler):
    """Keeps lines for half a second, and writes them at once. Asked within an event loop."""

    def __init__(self, target: logging.Handler) -> None:
        super().__init__(MOST, target=target)

    def emit(self, record: logging.LogRecord) -> None:
        if not self.buffer:
            asyncio.get_running_loop().call_later(TOGETHER_S, self.flush)
        super().emit(record)

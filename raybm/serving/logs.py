"""Where a replica's log lines go."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from logging.handlers import MemoryHandler

ACCESS = "raybm.serving.access"
MOST = 1000  # lines


def log_with_serve() -> None:
    """Sends raybm's lines where Serve's own go (the replica's log file and stderr); Ray sets up only its own loggers. Lines about requests
    go to the file alone, since what stands on stderr is copied to another file, read there, and sent to whoever deployed; and many
    together."""
    handlers = logging.getLogger("ray.serve").handlers
    files = [Together(handler) for handler in handlers if type(handler) is not logging.StreamHandler]
    for name, takes in (("raybm", handlers), (ACCESS, files or handlers)):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = list(takes)
        logger.propagate = False


class Together(MemoryHandler):
    """Keeps lines until it is flushed, and gives them on as one record: for each record a file is asked for its size, and flushed."""

    def __init__(self, target: logging.Handler) -> None:
        """`target`: a file's handler, or Serve's own MemoryHandler before one."""
        super().__init__(MOST, target=target)
        file = target.target if isinstance(target, MemoryHandler) and target.target else target
        self.setFormatter(file.formatter)
        file.setFormatter(Written(file.formatter))

    def emit(self, record: logging.LogRecord) -> None:
        if self.target and self.target.filter(record):  # Serve's filters note whose line it is
            super().emit(record)

    def flush(self) -> None:
        with self.lock or nullcontext():
            records, self.buffer = self.buffer, []
            if self.target and records:
                lines = "\n".join(map(self.format, records))
                self.target.handle(logging.makeLogRecord({"msg": lines, "levelno": logging.INFO, "written": True}))
                self.target.flush()


class Written(logging.Formatter):
    """For records that are lines already; others are left to another formatter."""

    def __init__(self, other: logging.Formatter | None) -> None:
        super().__init__()
        self._other = other or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return str(record.msg) if hasattr(record, "written") else self._other.format(record)

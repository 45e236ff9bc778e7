"""Where a replica's log lines go."""

from __future__ import annotations

import logging

ACCESS = "raybm.serving.access"


def log_with_serve() -> None:
    """Sends raybm's lines where Serve's own go (the replica's log file and stderr); Ray sets up only its own loggers. Lines about requests
    go to the file alone: what stands on stderr is copied to another file, read there, and sent to whoever deployed, which costs more than
    the rest of the line."""
    handlers = logging.getLogger("ray.serve").handlers
    files = [handler for handler in handlers if type(handler) is not logging.StreamHandler]
    for name, takes in (("raybm", handlers), (ACCESS, files or handlers)):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = list(takes)
        logger.propagate = False

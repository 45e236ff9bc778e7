"""Where a replica's log lines go."""

from __future__ import annotations

import logging


def log_with_serve() -> None:
    """Sends raybm's lines where Serve's own go (the replica's log file and stderr); Ray sets up only its own loggers."""
    ours = logging.getLogger("raybm")
    ours.setLevel(logging.INFO)
    ours.handlers = list(logging.getLogger("ray.serve").handlers)
    ours.propagate = False

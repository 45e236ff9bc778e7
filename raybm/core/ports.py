"""Free TCP ports, of loopback for what listens on this machine alone."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress

from raybm.core.errors import UserError

PORTS = range(20_000, 30_000)
"""Not those that the system hands out (Linux: from 32768): another process may have one by the time that it is used. Serve's replicas
begin at 30000."""


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """So many that are free now, at random. Raises UserError."""
    with ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(PORTS, len(PORTS)):
            with suppress(OSError):
                stack.enter_context(socket.create_server((host, port)))
                found.append(port)
            if len(found) == count:
                return found
    raise UserError(f"no {count} ports are free from {PORTS[0]} to {PORTS[-1]}.", remedy="End something that listens there.")

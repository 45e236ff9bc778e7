"""A stream that its client can come back for, whatever was killed meanwhile: gateway, proxy or the client itself.

A client that wants to can sends an `x-request-id` of its own and `Last-Event-ID: 0` with its request. When the connection breaks, it sends
the same again with the number of events that it has, and gets those behind them. Nothing is kept for it: the answer is made anew, with
draws that come from the request id, so that in fp32 it is the same one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Sequence

from starlette.requests import Request

from raybm.core.errors import Unsupported, UserError
from raybm.engines.protocol import GenerateRequest

HEADER = "last-event-id"


def events_seen(request: Request, repeats: bool) -> int | None:
    """Events that the client has already; None where it will not come back. `repeats`: whether the model answers in the same pieces
    again. Raises UserError, Unsupported."""
    seen = request.headers.get(HEADER)
    if seen is None:
        return None
    if not repeats:
        what = "this model's answer may come in other pieces the next time."
        raise Unsupported(what, where=HEADER, remedy="Leave it out, and ask for the whole answer again.")
    if not re.fullmatch(r"[0-9]{1,9}", seen):
        raise UserError("is no number of events.", where=HEADER, remedy="Send 0, or how many have come.")
    if "x-request-id" not in request.headers:
        raise UserError("is of no use without an id.", where=HEADER, remedy="Send an x-request-id, and the same one again.")
    return int(seen)


def repeatable(requests: Sequence[GenerateRequest], request: Request) -> list[GenerateRequest]:
    """With a seed out of the request id where chance would decide. Raises UserError."""
    if len(requests) > 1:
        raise UserError("several answers come in no certain order.", where=HEADER, remedy="Ask for one: n = 1.")
    seed = int.from_bytes(hashlib.sha256(request.headers["x-request-id"].encode()).digest()[:7])
    return [one._replace(seed=seed if one.seed is None else one.seed) for one in requests]


async def behind(events: AsyncIterator[bytes], seen: int) -> AsyncIterator[bytes]:
    async for event in events:
        if seen:
            seen -= 1
        else:
            yield event

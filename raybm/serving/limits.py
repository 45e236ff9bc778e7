"""How much: bytes of a body, requests a minute of a tenant, inputs of a request.

The windows live in the memory of one gateway replica. With `gateway.replicas: n` a tenant may get up to n times its
`requests_per_minute`, and a restarted gateway starts counting anew.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable

from starlette.requests import Request

from raybm.core.errors import Overloaded, UserError
from raybm.spec.serve import GatewaySpec

WINDOW_S = 60.0
DIGITS_MAX = 18  # of a length; Python takes long to read thousands, and refuses more


class BodyTooLarge(UserError):
    """The body has more bytes than `gateway.max_body_bytes` (413)."""


class RateLimited(Overloaded):
    """The tenant has used up its requests of this minute (429)."""

    def __init__(self, what: str, *, where: str = "", remedy: str = "", retry_after_s: float = WINDOW_S) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.retry_after_s = retry_after_s


class Limits:
    def __init__(self, spec: GatewaySpec, clock: Callable[[], float] = time.monotonic) -> None:
        self._spec, self._clock = spec, clock
        self._per_minute = {key.tenant: key.requests_per_minute for key in spec.api_keys}
        self._seen: dict[str, deque[float]] = defaultdict(deque)

    def admit(self, tenant: str) -> None:
        """Counts one request in the tenant's sliding minute. Raises RateLimited."""
        allowed = self._per_minute.get(tenant)
        if allowed is None:
            return
        now, seen = self._clock(), self._seen[tenant]
        while seen and seen[0] <= now - WINDOW_S:
            seen.popleft()
        if len(seen) >= allowed:
            wait_s = seen[0] + WINDOW_S - now
            raise RateLimited(f"{allowed} requests a minute are allowed.", remedy=f"Try again in {wait_s:.0f} s.", retry_after_s=wait_s)
        seen.append(now)

    async def body(self, request: Request) -> bytes:
        """The request's body; stops reading at the limit. Raises BodyTooLarge."""
        limit = self._spec.max_body_bytes
        too_large = BodyTooLarge(f"the body has more than {limit} bytes.", remedy="Send less at once.")
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and (len(announced) > DIGITS_MAX or int(announced) > limit):
            raise too_large
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
        return bytes(body)

    def inputs(self, count: int) -> None:
        """Raises UserError for more texts than `gateway.max_inputs`."""
        if count > self._spec.max_inputs:
            raise UserError(f"{count} inputs, and a request may hold {self._spec.max_inputs}.", remedy="Send them in several requests.")

"""How much: bytes of headers and of a body, seconds until that is here and until its answer, requests a minute of a tenant, inputs.

The windows live in the memory of one gateway replica. With `gateway.replicas: n` a tenant may get up to n times its
`requests_per_minute`, and a restarted gateway starts counting anew.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable

from starlette.requests import Request

from raybm.core.errors import Overloaded, UserError
from raybm.spec.serve import GatewaySpec

WINDOW_S = 60.0
DIGITS_MAX = 18  # of a length; Python takes long to read thousands, and refuses more
HEADER_BYTES = 64_000
BYTES_PER_S = 33_000
BODY_S = 30.0  # a million bytes at that rate
TIMEOUT_HEADER = "x-request-timeout"


class BodyTooLarge(UserError):
    """The body has more bytes than `gateway.max_body_bytes` (413)."""


class HeadersTooLarge(UserError):
    """Headers, path and query have more than HEADER_BYTES (431)."""


class BodyTooSlow(UserError):
    """The body was not here in time (408)."""


class Refused(Overloaded):
    """Not now; `retry_after_s` says when."""

    def __init__(self, what: str, *, where: str = "", remedy: str = "", retry_after_s: float = WINDOW_S) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.retry_after_s = retry_after_s


class RateLimited(Refused):
    """The tenant has used up its requests of this minute (429)."""


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

    def headers(self, request: Request) -> None:
        """Raises HeadersTooLarge. Serve's proxy lets megabytes through."""
        sizes = [len(name) + len(value) for name, value in request.headers.raw]
        if sum(sizes) + len(request.scope["path"]) + len(request.scope["query_string"]) > HEADER_BYTES:
            raise HeadersTooLarge(f"the headers have more than {HEADER_BYTES} bytes.", remedy="Send fewer.")

    async def body(self, request: Request) -> bytes:
        """The request's body; stops reading at the limits. Raises BodyTooLarge, BodyTooSlow."""
        limit = self._spec.max_body_bytes
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and (len(announced) > DIGITS_MAX or int(announced) > limit):
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise self._too_large()
        except TimeoutError:
            raise BodyTooSlow(f"the body was not here within {BODY_S:g} s.", remedy="Send it faster.") from None
        return bytes(body)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body has more than {self._spec.max_body_bytes} bytes.", remedy="Send less at once.")

    def timeout_s(self, request: Request) -> float:
        """Seconds for the answer: `gateway.request_timeout_s`, or fewer where the client says so. Raises UserError."""
        asked = request.headers.get(TIMEOUT_HEADER)
        if asked is None:
            return self._spec.request_timeout_s
        try:
            seconds = float(asked)
        except ValueError:
            seconds = 0.0
        if not seconds > 0:  # nor NaN
            raise UserError("is no number of seconds.", where=TIMEOUT_HEADER, remedy="Send such as 30.")
        return min(seconds, self._spec.request_timeout_s)

    def inputs(self, count: int) -> None:
        """Raises UserError for more texts than `gateway.max_inputs`."""
        if count > self._spec.max_inputs:
            raise UserError(f"{count} inputs, and a request may hold {self._spec.max_inputs}.", remedy="Send them in several requests.")

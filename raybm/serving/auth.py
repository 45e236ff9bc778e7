"""Who asks: Bearer keys, of which the server knows only the SHA-256."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from raybm.core.errors import UserError
from raybm.spec.serve import ApiKey

ANONYMOUS = "anonymous"


class Unauthenticated(UserError):
    """No key, or one that nobody has (401)."""


class Keys:
    """The keys of `gateway.api_keys`. With none, everybody is the tenant `anonymous`."""

    def __init__(self, api_keys: tuple[ApiKey, ...]) -> None:
        self._keys = api_keys

    def tenant(self, authorization: str | None) -> str:
        """The tenant of an Authorization header. Raises Unauthenticated.

        Every stored digest is compared, each in constant time, so the time taken tells neither whether a key is near a
        right one nor whose it is.
        """
        if not self._keys:
            return ANONYMOUS
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthenticated("an API key is needed.", remedy="Send it as `Authorization: Bearer KEY`.")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        found = None
        for known in self._keys:
            if hmac.compare_digest(known.sha256, digest):
                found = known.tenant
        if found is None:
            raise Unauthenticated("this API key is not valid.", remedy="Ask the operator for one (`raybm key TENANT` makes one).")
        return found


def new_api_key() -> tuple[str, str]:
    """A fresh key of 256 random bits and its SHA-256. The key is for the tenant; only the digest goes into `gateway.api_keys`."""
    key = f"rb-{secrets.token_urlsafe(32)}"
    return key, hashlib.sha256(key.encode()).hexdigest()

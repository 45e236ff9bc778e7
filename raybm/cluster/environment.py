"""Environment variables for as long as something runs, and Ray's cached view of them."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

LOCAL_TOKEN = Path("~/.raybm/cluster/token")  # written by cluster/local.sh


@contextmanager
def environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables (None: unset) and put back what was there."""
    before = {name: os.environ.get(name) for name in changes}
    _apply(changes)
    try:
        yield
    finally:
        _apply(before)


def _apply(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if "ray" in sys.modules:  # Ray reads the mode at import and the token once
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


def write_token(path: Path) -> None:
    """A fresh 256-bit token that only this user can read."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def token_of(host: str) -> dict[str, str | None]:
    """What to set so that Ray finds the token of the cluster at `host`. A user's own settings stand; where there are none,
    the token of cluster/local.sh goes to this machine and to no other."""
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return {"RAY_AUTH_MODE": "token"}
    token = LOCAL_TOKEN.expanduser()
    if host in ("127.0.0.1", "localhost", "::1") and token.exists():
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    return {"RAY_AUTH_MODE": "disabled"}  # said, because Ray would otherwise take a token that happens to lie in ~/.ray

"""One writer an artifact: a lease that its holder renews and that others may take over once it has gone quiet."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from raybm.core.errors import Conflict, DeadlineExceeded, NotFound, StorageError
from raybm.core.storage import Storage

log = logging.getLogger(__name__)
KEY = "lease.json"
RENEW_S = 5.0
QUIET_S = 30.0  # a holder that has not renewed for so long is taken for dead


class Lease:
    """Held within `with`. Waits for another holder up to `timeout_s`, saying so; raises DeadlineExceeded then."""

    def __init__(self, storage: Storage, holder: str, timeout_s: float, say: Callable[[str], None]) -> None:
        self.storage, self.holder, self.timeout_s, self.say = storage, holder, timeout_s, say
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="raybm-lease")

    def __enter__(self) -> Self:
        deadline, told = time.monotonic() + self.timeout_s, False
        while not self._take():
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"another run is still making it after {self.timeout_s:.0f} s.", where=self.storage.uri)
            if not told:
                self.say(f"waiting for another run that makes the same artifact ({self.storage.uri})")
                told = True
            time.sleep(1.0)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join(timeout=RENEW_S)
        with contextlib.suppress(StorageError) if kind else contextlib.nullcontext():  # what went wrong first is what is told
            self.storage.delete(KEY)

    def _content(self) -> bytes:
        return json.dumps({"holder": self.holder, "host": platform.node(), "pid": os.getpid(), "time": time.time()}).encode()

    def _take(self) -> bool:
        try:
            self.storage.create(KEY, self._content())
            return True
        except Conflict:
            pass
        try:
            data, tag = self.storage.read_tagged(KEY)
            if not _quiet(json.loads(data)):
                return False
            self.storage.replace(KEY, self._content(), tag)
            return True
        except (NotFound, Conflict):
            return False  # released, or taken over by a third, just now

    def _renew(self) -> None:
        while not self._done.wait(RENEW_S):
            try:
                self.storage.write(KEY, self._content())
            except StorageError as error:  # the stage meets it too, and says so; the next beat tries again
                log.warning("lease: %s", error)


def held(storage: Storage) -> bool:
    """Whether somebody who is alive is making this artifact."""
    try:
        return not _quiet(json.loads(storage.read(KEY)))
    except NotFound:
        return False


def _quiet(lease: dict[str, object]) -> bool:
    if lease["host"] == platform.node() and not _alive(int(str(lease["pid"]))):
        return True
    return time.time() - float(str(lease["time"])) > QUIET_S


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

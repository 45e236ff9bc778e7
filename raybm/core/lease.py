"""One writer an artifact: a lease that its holder renews and that others may take over once it has gone quiet.

Every change is a compare-and-swap, also the release: who was paused for so long that another took over notices it, and spoils nothing.
Clocks of different hosts are not compared: a holder is quiet when the lease has not changed while somebody waited for it.
"""

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
from typing import Any, Self

from raybm.core.errors import Busy, Conflict, NotFound, RaybmError
from raybm.core.storage import Storage

log = logging.getLogger(__name__)
KEY = "lease.json"
RENEW_S = 5.0
POLL_S = 1.0
LOOKS = 3  # at a lease of one's own that could not be renewed
QUIET_S = 30.0  # a holder that has not renewed for so long is taken for dead
SKEW_S = 600.0  # by which hosts' clocks may differ, where there is no time to wait


class Lease:
    """Held within `with`. Waits for another holder up to `timeout_s`, saying so; raises Busy then.

    `holder`: a name that nobody else has. `on_lost` is called, in a thread, once somebody else has taken over.
    """

    def __init__(
        self, storage: Storage, holder: str, timeout_s: float, say: Callable[[str], None], on_lost: Callable[[Conflict], None]
    ) -> None:
        self.storage, self.holder, self.timeout_s, self.say, self.on_lost = storage, holder, timeout_s, say, on_lost
        self._seen, self._since = "", 0.0  # of another holder's lease: its tag, and since when it has had that
        self._done, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="raybm-lease")

    def __enter__(self) -> Self:
        deadline, told = time.monotonic() + self.timeout_s, False
        while not self._take():
            if time.monotonic() > deadline:
                raise Busy(f"another run is still making it after {self.timeout_s:.0f} s.", where=self.storage.uri)
            if not told:
                self.say(f"waiting for another run that makes the same artifact ({self.storage.uri})")
                told = True
            time.sleep(POLL_S)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join(timeout=RENEW_S)
        with contextlib.suppress(RaybmError if kind else Conflict):  # what went wrong first is what is told
            self._swap(None)

    def renew(self) -> None:
        """Raises Conflict where somebody else has taken over."""
        self._swap(self.holder)

    def _content(self, holder: str | None) -> bytes:
        return json.dumps({"holder": holder, "host": platform.node(), "pid": os.getpid(), "time": time.time()}).encode()

    def _take(self) -> bool:
        try:
            self.storage.create(KEY, self._content(self.holder))
            return True
        except Conflict:
            pass
        try:
            data, tag = self.storage.read_tagged(KEY)
            if tag != self._seen:
                self._seen, self._since = tag, time.monotonic()
            if not _free(json.loads(data)) and time.monotonic() - self._since < QUIET_S:
                return False
            self.storage.replace(KEY, self._content(self.holder), tag)
            return True
        except (NotFound, Conflict):
            return False  # deleted, or taken over by a third, just now

    def _swap(self, holder: str | None) -> None:
        for look in range(LOOKS):  # S3 also answers so where somebody else's write, that will not be, was under way
            time.sleep(POLL_S * bool(look))
            with self._lock, contextlib.suppress(NotFound, Conflict):
                data, tag = self.storage.read_tagged(KEY)
                if json.loads(data)["holder"] != self.holder:
                    break
                self.storage.replace(KEY, self._content(holder), tag)
                return
        remedy = "It goes on from what was done; follow that one (`raybm runs`)."
        raise Conflict("another run has taken over while this one was quiet.", where=self.storage.uri, remedy=remedy)

    def _beat(self) -> None:
        while not self._done.wait(RENEW_S):
            try:
                self.renew()
            except Conflict as lost:
                if not self._done.is_set():  # else it was released meanwhile
                    self.on_lost(lost)
                return
            except RaybmError as error:  # the stage meets it too, and says so; the next beat tries again
                log.warning("lease: %s", error)


def held(storage: Storage) -> bool:
    """Whether somebody who is alive is making this artifact; by the clocks, generously."""
    try:
        lease = json.loads(storage.read(KEY))
    except NotFound:
        return False
    return not _free(lease) and time.time() - lease["time"] < SKEW_S


def _free(lease: dict[str, Any]) -> bool:
    """Released, or of a process of this machine that has ended."""
    return lease["holder"] is None or (lease["host"] == platform.node() and not _alive(lease["pid"]))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""A folder a run: `<storage>/runs/<id>/` with spec.json, state.json, log.txt, metrics.jsonl, tensorboard/ and report.html."""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

from raybm.core.cache import cache_folder
from raybm.core.errors import Cancelled, DataError, NotFound, RaybmError, SpecError
from raybm.core.spec import Spec
from raybm.core.storage import Storage, files_under, local_errors

log = logging.getLogger(__name__)
HEARTBEAT_S = 5.0
LOST_S = 60.0  # no sign of life for so long: the driver is gone
SWEEP = "sweep.json"
"""In the folder of a run with a sweep: where the trials stand in the storage."""


class RunState(Spec):
    run: str
    job: str
    state: Literal["running", "succeeded", "failed", "cancelled"]
    stage: str = ""
    """The one it is in, or ended in."""
    artifacts: dict[str, str] = {}
    """Stage → artifact key, for those that are done."""
    error: str = ""
    started: float
    heartbeat: float
    host: str
    pid: int

    @property
    def shown(self) -> str:
        """`lost` for a run whose driver has gone quiet."""
        return "lost" if self.state == "running" and time.time() - self.heartbeat > LOST_S else self.state


class Walker(Protocol):
    """What the runner needs of what it walks for."""

    id: str
    """That nobody else has."""
    stopped: RaybmError | None
    """Why somebody wants it to end: what the runner raises then."""

    def update(self, **changes: Any) -> None: ...

    def stop(self, why: RaybmError) -> None: ...


class Run:
    """The driver's side: writes the state, beats, brings local files to the storage, and notices a wish to cancel."""

    def __init__(self, root: Storage, job: str, spec: dict[str, Any], on_cancel: Callable[[], None]) -> None:
        self.id = f"{job}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
        self.stopped: RaybmError | None = None
        """Why somebody wants it to end: what the runner raises then."""
        self.storage = root.at(f"runs/{self.id}")
        self.folder = self.storage.local() or cache_folder("runs") / self.id
        with local_errors(str(self.folder)):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._on_cancel, self._done, self._lock = on_cancel, threading.Event(), threading.Lock()
        self._brought: dict[str, tuple[int, int]] = {}
        now = time.time()
        self.state = RunState(run=self.id, job=job, state="running", started=now, heartbeat=now, host=platform.node(), pid=os.getpid())
        self.storage.write("spec.json", json.dumps(spec, indent=2, ensure_ascii=False).encode())
        self.update()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="raybm-heartbeat")
        self._thread.start()

    def update(self, **changes: Any) -> None:
        with self._lock:
            self.state = self.state.model_copy(update=changes | {"heartbeat": time.time()})
            self.storage.write("state.json", json.dumps(self.state.canonical(), indent=2).encode())

    def stop(self, why: RaybmError) -> None:
        """End the run, from any thread. An interrupt ends any wait at once, which a flag that stages look at would not."""
        self.stopped = self.stopped or why
        self._on_cancel()

    def close(self, **changes: Any) -> None:
        """Stop beating, bring the files over, write the last state."""
        self._done.set()
        self._thread.join(timeout=2 * HEARTBEAT_S)
        self._bring()
        self.update(**changes)

    def _bring(self) -> None:
        """Where the storage is elsewhere: the files that are new or have another size or time than when they were brought last."""
        if self.storage.local() is not None:
            return
        for name in files_under(self.folder):
            path = self.folder / name
            with local_errors(str(path)):
                status = path.stat()
                state = status.st_size, status.st_mtime_ns
                if self._brought.get(name) != state:
                    self.storage.write(name, path.read_bytes())
                    self._brought[name] = state

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT_S):
            try:
                self.update()
                self._bring()
                if self.storage.exists("cancel"):
                    self.stop(Cancelled("the run was cancelled.", where=self.id, remedy="The same command goes on from what is done."))
                    return
            except RaybmError as error:  # the stages meet it too, and say so; the next beat tries again
                log.warning("heartbeat: %s", error)


def states(root: Storage) -> list[RunState]:
    """All runs, the newest first, but for those whose state cannot be read."""
    found = []
    for name in root.folders("runs"):
        try:
            found.append(read_state(root, name))
        except NotFound:
            continue
        except DataError as error:
            log.warning("%s", error)
    return sorted(found, key=lambda state: -state.started)


def read_state(root: Storage, run: str) -> RunState:
    """Raises NotFound, and DataError for one that is torn, or of another version of raybm."""
    try:
        return RunState.parse(json.loads(root.read(f"runs/{run}/state.json")))
    except (ValueError, SpecError) as error:
        raise DataError(f"its state.json cannot be read: {error}", where=run, remedy="`raybm clean` removes old runs.") from None
    except NotFound:
        known = ", ".join(root.folders("runs")[-5:]) or "none"
        raise NotFound("there is no such run.", where=run, remedy=f"`raybm runs` lists them. The last ones: {known}.") from None


def cancel(root: Storage, run: str) -> RunState:
    """Ask a running run to stop; its driver notices within seconds. Raises NotFound."""
    state = read_state(root, run)
    if state.shown == "running":
        root.write(f"runs/{run}/cancel", b"")
    return state

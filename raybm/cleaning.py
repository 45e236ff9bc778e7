"""What `raybm clean` may delete, and deleting it.

Kept, whatever their age:
- published versions, all of them: an alias, a spec (`registry:chat@3`) or a live replica may name any;
- artifacts of runs that are running, what those were made from, the trials of their sweeps, and what those have trained;
- what somebody alive is making (a lease), and what was written within the last `keep_days` (a failed run resumes from there).

Artifacts from which an aliased version was made may go: the registry holds its own copy of the model, its evaluation and its lineage.
Caches hold copies only; whoever needs one again makes it again, so a replica that has loaded its model misses nothing.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from raybm.core.artifact import RECORD, Artifact
from raybm.core.cache import DEPTHS, ROOT
from raybm.core.errors import NotFound
from raybm.core.lease import held
from raybm.core.registry import VERSION_FILE
from raybm.core.runs import SWEEP, RunState, states
from raybm.core.storage import HIDDEN, Storage, arrow_errors

DAY_S = 86400.0
UNFINISHED_S = 3600.0  # what is not finished has to lie still for so long, even with keep_days=0


@dataclass(frozen=True)
class Removable:
    path: str
    """Where it lies: a path or an s3:// address."""
    bytes: int
    why: str
    key: str | None = None
    """Its prefix in the storage; None for what lies in this machine's cache."""


@dataclass
class _Folder:
    """Everything below one prefix."""

    bytes: int = 0
    newest: float = 0.0
    """Seconds since 1970 of the last write (or, in a cache, reading)."""
    files: set[str] = field(default_factory=set)

    def days(self) -> float:
        return (time.time() - self.newest) / DAY_S


def removable(root: Storage, keep_days: float = 7.0, cache: Path = Path(ROOT)) -> list[Removable]:
    """Everything that is older than `keep_days` and that nothing kept needs, in the storage and in this machine's cache."""
    runs = states(root)
    old = {run.run for run in runs if run.shown != "running" and time.time() - run.heartbeat >= keep_days * DAY_S}
    kept = [run for run in runs if run.run not in old]
    found = [*_artifacts(root, kept, keep_days), *_runs(root, {run.run for run in runs}, old, keep_days)]
    return [*found, *_sweeps(root, kept, keep_days), *_publications(root, keep_days), *_cached(cache.expanduser(), kept, keep_days)]


def remove(root: Storage, found: Iterable[Removable]) -> None:
    """Delete them, but for artifacts and sweeps that a run has come to need meanwhile. What marks a thing as finished goes first."""
    for item in found:
        if item.key is None:
            _remove_local(Path(item.path))
            continue
        if _taken_up(root, item.key):
            continue
        for marker in (RECORD, "state.json"):
            root.delete(f"{item.key}/{marker}")
        root.delete(item.key)


def _taken_up(root: Storage, key: str) -> bool:
    """Whether a run that is running needs it now."""
    kind, *rest = key.split("/")
    if kind not in ("artifacts", "sweeps"):
        return False
    running = [run for run in states(root) if run.shown == "running"]
    if kind == "sweeps":
        return any(_sweep_of(root, run.run) == key for run in running)
    newest = max((folder.newest for folder in _folders(root, key, 0).values()), default=0.0)
    return held(root.at(key)) or rest[1] in _needed(root, running) or newest >= _searching_since(root, running)


def _searching_since(root: Storage, runs: Iterable[RunState]) -> float:
    """When the oldest of the runs that are searching began: which artifacts are their trials', no run says."""
    return min((run.started for run in runs if run.shown == "running" and _sweep_of(root, run.run)), default=math.inf)


def _needed(root: Storage, runs: Iterable[RunState]) -> set[str]:
    """Keys of the runs' artifacts and of all that those were made from."""
    needed: set[str] = set()
    todo = [pair for run in runs for pair in run.artifacts.items()]
    while todo:
        stage, key = todo.pop()
        if key not in needed:
            needed.add(key)
            record = Artifact(root.at(f"artifacts/{stage}/{key}"), stage, key).record()
            todo += record.inputs.items() if record else []
    return needed


def _artifacts(root: Storage, kept: Iterable[RunState], keep_days: float) -> Iterator[Removable]:
    needed, since = _needed(root, kept), _searching_since(root, kept)
    for name, folder in _folders(root, "artifacts", 2).items():
        key = f"artifacts/{name}"
        finished = RECORD in folder.files
        if name.partition("/")[2] in needed or folder.newest >= since or not _old(folder, keep_days, finished) or held(root.at(key)):
            continue
        why = "no kept run refers to it" if finished else "never finished, and nobody is at it"
        yield Removable(root.at(key).uri, folder.bytes, f"{why}; {folder.days():.0f} days old", key)


def _runs(root: Storage, known: set[str], old: set[str], keep_days: float) -> Iterator[Removable]:
    for name, folder in _folders(root, "runs", 1).items():
        if name in old or (name not in known and _old(folder, keep_days, finished=False)):
            yield Removable(root.at(f"runs/{name}").uri, folder.bytes, f"run of {folder.days():.0f} days ago", f"runs/{name}")


def _sweeps(root: Storage, kept: Iterable[RunState], keep_days: float) -> Iterator[Removable]:
    """What became of trials, where no kept run looks at it."""
    folders = _folders(root, "sweeps", 1)
    used = {_sweep_of(root, run.run) for run in kept} if folders else set()
    for name, folder in folders.items():
        if f"sweeps/{name}" not in used and _old(folder, keep_days, finished=False):
            yield Removable(root.at(f"sweeps/{name}").uri, folder.bytes, f"sweep of {folder.days():.0f} days ago", f"sweeps/{name}")


def _sweep_of(root: Storage, run: str) -> str | None:
    try:
        place: str = json.loads(root.read(f"runs/{run}/{SWEEP}"))["storage"]
    except NotFound:
        return None
    return place


def _publications(root: Storage, keep_days: float) -> Iterator[Removable]:
    """Uploads that were cut off: a number that was taken and never became a version."""
    for name, folder in _folders(root, "registry", 3).items():
        if name.split("/")[1] == "versions" and VERSION_FILE not in folder.files and _old(folder, keep_days, finished=False):
            yield Removable(root.at(f"registry/{name}").uri, folder.bytes, "publication that was cut off", f"registry/{name}")


def _old(folder: _Folder, keep_days: float, finished: bool) -> bool:
    return folder.days() * DAY_S >= max(keep_days * DAY_S, 0.0 if finished else UNFINISHED_S)


def _folders(root: Storage, prefix: str, depth: int) -> Mapping[str, _Folder]:
    """What lies under `prefix`, by the first `depth` parts of the path; one listing."""
    import pyarrow.fs

    filesystem, base = root.arrow(prefix)
    found: dict[str, _Folder] = {}
    with arrow_errors(root.at(prefix).uri):
        infos = filesystem.get_file_info(pyarrow.fs.FileSelector(base, recursive=True, allow_not_found=True))
    for info in infos:
        parts = info.path[len(base) :].strip("/").split("/")
        if info.type == pyarrow.fs.FileType.File and len(parts) > depth:
            folder = found.setdefault("/".join(parts[:depth]), _Folder())
            folder.bytes += info.size
            folder.newest = max(folder.newest, (info.mtime_ns or 0) / 1e9)
            folder.files.add("/".join(parts[depth:]))
    return found


# ---- this machine's cache


def _cached(cache: Path, kept: list[RunState], keep_days: float) -> Iterator[Removable]:
    """Entries that were not read for `keep_days` (a file's access time, which Linux renews once a day) and that no kept run names."""
    names = {run.run for run in kept} | {key for run in kept for key in run.artifacts.values()}
    for kind, depth in DEPTHS.items():
        for path in sorted((cache / kind).glob("/".join("*" * depth))):
            if path.name in names or any(path.name.startswith(f"{name}-") for name in names):
                continue
            folder = _on_disk(path)
            if folder.days() >= max(keep_days, UNFINISHED_S / DAY_S):
                yield Removable(str(path), folder.bytes, f"cache, not read for {folder.days():.0f} days")


def _on_disk(path: Path) -> _Folder:
    folder = _Folder()
    for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
        try:
            status = file.stat()
        except FileNotFoundError:  # gone meanwhile, or a dangling link
            continue
        folder.newest = max(folder.newest, status.st_mtime, 0.0 if file.is_dir() else status.st_atime)
        folder.bytes += 0 if file.is_dir() else status.st_size
    return folder


def _remove_local(path: Path) -> None:
    """Out of the way in one step, then deleted: a cached folder's existence means that it is whole."""
    aside = path.with_name(f"{HIDDEN}{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if aside.is_dir():
        shutil.rmtree(aside)
    else:
        aside.unlink()

"""A folder that is made once: downloads and conversions below ~/.raybm/cache/models.

A folder appears under its name complete (made aside, then renamed), so its existence means that it is done, and an
interrupted one is made anew. Two processes that want the same one share the work through a file lock.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from raybm.core.cache import ROOT, cache_folder
from raybm.core.errors import DeadlineExceeded, StorageError

_WAIT_S = 1800.0  # a conversion takes half a minute, a download of many GB its time


def once(name: str, make: Callable[[Path], None], wait_s: float = _WAIT_S) -> Path:
    """The folder `name` of the cache, filled by `make(empty folder)` if it is not there. Raises DeadlineExceeded when another
    process has been making it for `wait_s` seconds, StorageError where the disk refuses, and what `make` raises."""
    cache = cache_folder("models")
    folder = cache / name
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = cache / f".{name}.lock"
        with FileLock(lock, timeout=wait_s):
            if not folder.is_dir():
                aside = cache / f".{name}.new"
                shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
                aside.mkdir()
                try:
                    make(aside)
                    aside.rename(folder)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
    except Timeout:
        what = f"another process has been making this model folder for {wait_s:g} s."
        raise DeadlineExceeded(what, where=str(folder), remedy="End it, then try again.") from None
    except OSError as error:
        remedy = f"{ROOT} must be writable and have room."
        raise StorageError(f"cannot be made: {error.strerror or error}.", where=str(folder), remedy=remedy) from error
    return folder

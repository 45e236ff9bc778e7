"""Where artifacts and the registry live: a folder or an S3 bucket behind one small interface.

Keys are relative POSIX paths ("rows/train/0.parquet"). A `prefix` names one file or a folder with everything below it, never a
part of a name. What the callers build on: `write` replaces as a whole, `create` has one winner, `replace` is a compare-and-swap.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from raybm.core.errors import Conflict, NotFound, StorageError, UserError

if TYPE_CHECKING:
    import pyarrow.fs

HIDDEN = ".raybm-"  # names of temporary and lock files; never listed
LOCK_TIMEOUT_S = 30.0
COPY_THREADS = 8
T = TypeVar("T")


class Storage(Protocol):
    """A tree of files. Picklable: holds addresses, no connection and no credentials. Every method raises StorageError."""

    @property
    def uri(self) -> str: ...

    def at(self, prefix: str) -> Storage:
        """The sub-tree under `prefix`."""

    def read(self, key: str) -> bytes:
        """Raises NotFound."""

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """The data and its version tag, for `replace`. Raises NotFound."""

    def write(self, key: str, data: bytes) -> None:
        """Atomic: a reader sees the old or the new data, never a part."""

    def create(self, key: str, data: bytes) -> None:
        """Raises Conflict where the key exists; of several at once one succeeds."""

    def replace(self, key: str, data: bytes, tag: str) -> None:
        """Raises Conflict where the data is no longer what `read_tagged` gave with this tag."""

    def exists(self, key: str) -> bool:
        """Whether there is such a file (a folder is none)."""

    def keys(self, prefix: str = "") -> list[str]:
        """Every file under `prefix`, sorted, relative to this storage."""

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly under `prefix`, sorted."""

    def size(self, prefix: str = "") -> int:
        """Bytes under `prefix`."""

    def delete(self, prefix: str) -> None:
        """The file or everything below the folder. No error where there is nothing."""

    def upload(self, folder: Path, prefix: str = "") -> None:
        """Every file of a local folder, several at a time."""

    def download(self, prefix: str, folder: Path) -> None:
        """Everything below `prefix` into a local folder. A folder that did not exist appears complete or not at all; in one that
        did, each file does. Raises NotFound where there is nothing."""

    def local(self, prefix: str = "") -> Path | None:
        """The folder or file itself where it lies on this file system, else None."""

    def arrow(self, prefix: str = "") -> tuple[pyarrow.fs.FileSystem, str]:
        """File system and path for Ray Data and Parquet readers."""


def open_storage(uri: str) -> Storage:
    """`~/folder`, `/folder`, `file:///folder` or `s3://bucket/prefix`. Touches nothing yet. Raises UserError."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return LocalStorage(Path(os.path.abspath(Path(uri).expanduser())))  # noqa: PTH100  (resolve() would follow links)
    if scheme == "file" and rest.startswith("/"):
        return LocalStorage(Path(os.path.normpath(rest)))
    if scheme == "s3":
        from raybm.core.storage_s3 import open_s3  # boto3 loads there, and only for those who use it

        return open_s3(rest)
    raise UserError(f"{uri!r} is no storage.", where="storage", remedy="Use a folder, file:///folder or s3://bucket/prefix.")


def check_key(key: str, empty: bool = False) -> str:
    """The key, if it is a plain relative path. Raises UserError."""
    if key == "" and empty:
        return key
    if "\0" in key or "\\" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise UserError(
            f"{key!r} is no key.", where="storage", remedy="A key is a relative path with / and without empty parts, '.' and '..'."
        )
    return key


def in_parallel(function: Callable[[T], None], items: Iterable[T]) -> None:
    """Calls for all items on a few threads; the first error is raised and what has not begun is dropped."""
    with ThreadPoolExecutor(COPY_THREADS, thread_name_prefix="storage") as pool:
        try:
            for future in [pool.submit(function, item) for item in items]:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def files_under(folder: Path) -> list[str]:
    """Relative POSIX paths of all files below a local folder, sorted. Raises NotFound where it is no folder."""
    if not folder.is_dir():
        raise NotFound("there is no such folder.", where=str(folder))
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[str]:
    """files_under's, in no order. What is deleted meanwhile is left out."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(HIDDEN) and path.is_file():
                yield path.relative_to(folder).as_posix()


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A temporary sibling to fill; at the end it becomes `folder`, or its files move into it where it exists already."""
    temp = folder.parent / f"{HIDDEN}{uuid.uuid4().hex}"
    try:
        temp.mkdir(parents=True)
        yield temp
        try:
            temp.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            for name in files_under(temp):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (temp / name).replace(folder / name)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


@contextlib.contextmanager
def local_errors(where: str) -> Iterator[None]:
    """OSError → NotFound or StorageError that names the path."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise NotFound("there is no such file.", where=where) from None
    except OSError as error:
        remedy = {
            errno.EACCES: "Change the folder's permissions, or choose another `storage:`.",
            errno.EROFS: "The file system is read-only; choose another `storage:`.",
            errno.ENOSPC: "The disk is full; free some space (`raybm clean`), or choose another `storage:`.",
            errno.EDQUOT: "The quota is used up; free some space (`raybm clean`), or choose another `storage:`.",
            errno.EPERM: "The file system must have hard links (NFS does); choose another `storage:`.",
        }.get(error.errno or 0, "Check the disk, or choose another `storage:`.")
        raise StorageError(f"the file system refused: {error.strerror or error}.", where=where, remedy=remedy) from error


@contextlib.contextmanager
def arrow_errors(where: str) -> Iterator[None]:
    """OSError of a file system that `Storage.arrow` gave → StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{error}.", where=where, remedy="Check the storage; the same command goes on.") from error


@dataclass(frozen=True)
class LocalStorage:
    """A folder on this machine, or on a file system that all nodes share."""

    root: Path

    @property
    def uri(self) -> str:
        return str(self.root)

    def at(self, prefix: str) -> LocalStorage:
        return LocalStorage(self._path(prefix))

    def read(self, key: str) -> bytes:
        with local_errors(str(self._path(key, empty=False))):
            return self._path(key).read_bytes()

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        data = self.read(key)
        return data, hashlib.sha256(data).hexdigest()

    def write(self, key: str, data: bytes) -> None:
        path = self._path(key, empty=False)
        with local_errors(str(path)), self._temp(path) as temp:
            _write_synced(temp, data)
            temp.replace(path)

    def create(self, key: str, data: bytes) -> None:
        path = self._path(key, empty=False)
        with local_errors(str(path)), self._temp(path) as temp:
            _write_synced(temp, data)
            try:
                path.hardlink_to(temp)  # the one call that is both atomic and exclusive, on NFS too
            except FileExistsError:
                raise Conflict("exists already.", where=str(path)) from None

    def replace(self, key: str, data: bytes, tag: str) -> None:
        path = self._path(key, empty=False)
        with local_errors(str(path)), _lock(path.with_name(f"{HIDDEN}lock-{path.name}")):
            if not path.exists() or self.read_tagged(key)[1] != tag:
                raise Conflict("somebody else changed it meanwhile.", where=str(path))
            self.write(key, data)

    def exists(self, key: str) -> bool:
        path = self._path(key, empty=False)
        with local_errors(str(path)):
            return path.is_file()

    def keys(self, prefix: str = "") -> list[str]:
        path = self._path(prefix)
        with local_errors(str(path)):
            if path.is_file():
                return [prefix]
            names = sorted(_walk(path))
        return [f"{prefix}/{name}" if prefix else name for name in names]

    def folders(self, prefix: str = "") -> list[str]:
        path = self._path(prefix)
        with local_errors(str(path)), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(HIDDEN))
        return []

    def size(self, prefix: str = "") -> int:
        total = 0
        for key in self.keys(prefix):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                total += self._path(key).stat().st_size
        return total

    def delete(self, prefix: str) -> None:
        path = self._path(prefix)
        trash = path.with_name(f"{HIDDEN}{uuid.uuid4().hex}")
        with local_errors(str(path)):
            try:
                path.rename(trash)  # gone at once, and two deletes at a time do not trip over each other
            except (FileNotFoundError, NotADirectoryError):
                return
            if trash.is_dir() and not trash.is_symlink():
                shutil.rmtree(trash)
            else:
                trash.unlink()

    def upload(self, folder: Path, prefix: str = "") -> None:
        target, names = self._path(prefix), files_under(folder)
        if target.exists() and target.samefile(folder):
            return

        def copy(name: str) -> None:
            path = target / name
            with local_errors(str(path)), self._temp(path) as temp:
                _copy_synced(folder / name, temp)
                temp.replace(path)

        in_parallel(copy, names)

    def download(self, prefix: str, folder: Path) -> None:
        source = self._path(prefix)
        with local_errors(str(source)):
            names = files_under(source)
        if not names:
            raise NotFound("there are no files.", where=str(source))

        def copy(name: str) -> None:
            (temp / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, temp / name)

        with local_errors(str(folder)), appearing(folder) as temp:
            in_parallel(copy, names)

    def local(self, prefix: str = "") -> Path | None:
        return self._path(prefix)

    def arrow(self, prefix: str = "") -> tuple[pyarrow.fs.FileSystem, str]:
        import pyarrow.fs

        return pyarrow.fs.LocalFileSystem(), str(self._path(prefix))

    def _path(self, key: str, empty: bool = True) -> Path:
        return self.root / check_key(key, empty)

    @contextlib.contextmanager
    def _temp(self, path: Path) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = path.with_name(f"{HIDDEN}{uuid.uuid4().hex}")
        try:
            yield temp
        finally:
            temp.unlink(missing_ok=True)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _copy_synced(source: Path, path: Path) -> None:
    shutil.copyfile(source, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process and thread at a time; freed by the kernel when its holder dies. Raises StorageError after LOCK_TIMEOUT_S."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"another process has held the lock for {LOCK_TIMEOUT_S:g} s.", where=str(path), remedy="End it."
                    ) from None
                time.sleep(0.01)
        yield

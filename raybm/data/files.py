"""From a source's `path` to open streams: globs, folders of S3, files inside installed packages, gzip, digests."""

from __future__ import annotations

import glob
import gzip
import hashlib
import importlib.util
import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from raybm.core.errors import DataError, NotFound
from raybm.core.storage import Storage, arrow_errors, local_errors, open_storage

WILDCARD = re.compile(r"[*?\[]")
NOT_TEXT = (
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "Unpack it, or save it as CSV (UTF-8)."),
    (b"PAR1", "Parquet", "Export it as JSON Lines."),
    (b"ARROW1", "Arrow", "Export it as JSON Lines."),
    (b"\xff\xfe", "UTF-16", "Save it as UTF-8: `iconv -f UTF-16 -t UTF-8`."),
    (b"\xfe\xff", "UTF-16", "Save it as UTF-8: `iconv -f UTF-16 -t UTF-8`."),
    (b"\x1f\x8b", "gzip inside", "Let its name end in .gz."),
    (b"%PDF", "a PDF", "Extract its text first."),
)


@dataclass(frozen=True)
class File:
    """One file of a source: the path as people know it (absolute, s3://, or package:), its bytes on disk, and for S3 the server."""

    path: str
    bytes: int
    storage: Storage | None = None


def expand(path: str) -> tuple[File, ...]:
    """The files that a source's path names, in sorted order. Raises NotFound where there is none, StorageError."""
    if path.startswith("s3://"):
        files = _in_storage(path)
    elif path.startswith("package:"):
        name, _, inside = path.removeprefix("package:").partition("/")
        folder = _package(name, path)
        files = [
            File(f"package:{name}/{Path(found).relative_to(folder).as_posix()}", size)
            for found, size in _on_disk(f"{glob.escape(str(folder))}/{inside}")
        ]
    else:
        files = [File(found, size) for found, size in _on_disk(str(Path(path).expanduser().absolute()))]
    if not files:
        what = "matches no file." if WILDCARD.search(path) else "there is no such file."
        raise NotFound(
            what, where=path, remedy="Check the path" + (" (a folder needs a pattern, such as folder/*.csv)." if _is_folder(path) else ".")
        )
    return tuple(files)


def _on_disk(pattern: str) -> list[tuple[str, int]]:
    try:
        found = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)  # noqa: PTH207  (a whole pattern, absolute)
        return [(name, Path(name).stat().st_size) for name in sorted(found) if Path(name).is_file()]
    except OSError as error:
        raise NotFound(f"cannot be looked at: {error.strerror}.", where=pattern, remedy="See who may read it.") from None


def _is_folder(path: str) -> bool:
    return not path.startswith(("s3://", "package:")) and os.path.isdir(Path(path).expanduser())  # noqa: PTH112  (False where one may not look)


def _package(name: str, path: str) -> Path:
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise NotFound(
            f"there is no installed package {name!r}.", where=path, remedy=f"Install it (pip install {name}), or check its import name."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _in_storage(path: str) -> list[File]:
    import pyarrow.fs

    bucket, *parts = path.removeprefix("s3://").split("/")
    fixed = next((i for i, part in enumerate(parts) if WILDCARD.search(part)), len(parts) - 1)
    pattern = parts[fixed:]
    folder = "/".join([f"s3://{bucket}", *parts[:fixed]])
    storage = open_storage(folder)
    names = storage.keys()
    exact = "/".join(pattern)
    keys = [exact] if exact in names else [key for key in names if _matches(key.split("/"), pattern)]
    filesystem, root = storage.arrow()
    with arrow_errors(path):
        infos = filesystem.get_file_info([f"{root}/{key}" for key in keys])
    is_file = pyarrow.fs.FileType.File
    return [File(f"{folder}/{key}", info.size, storage.at(key)) for key, info in zip(keys, infos, strict=True) if info.type == is_file]


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """As `glob` has it: `**` is any number of folders, and what begins with a dot is matched only by what does, too."""
    if not pattern or not parts:
        return not parts and all(wild == "**" for wild in pattern)
    hidden = parts[0].startswith(".")
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (not hidden and _matches(parts[1:], pattern))
    return fnmatchcase(parts[0], pattern[0]) and (not hidden or pattern[0].startswith(".")) and _matches(parts[1:], pattern[1:])


DIGESTED_BYTES = 1 << 29  # Ray packs no more


def state(path: str) -> list[tuple[str, str]]:
    """What a source's path means now: of each file its path and its version. Of a path that begins in the folder that this process works in
    both are the same wherever that folder is, since a submitted job is unpacked elsewhere each time. Raises NotFound, StorageError."""
    files, here = expand(path), Path.cwd()
    if path.startswith(("s3://", "package:", "~")) or Path(path).is_absolute():
        return [(file.path, version(file)) for file in files]
    return [(os.path.relpath(file.path, here), _content(file)) for file in files]


def version(file: File) -> str:
    """Changes when the file does: size and modification time (of a packaged file: its size; packages have versions of their own)."""
    if file.path.startswith("package:"):
        return str(file.bytes)
    if file.storage is not None:
        filesystem, path = file.storage.arrow()
        with arrow_errors(file.path):
            return f"{file.bytes} {filesystem.get_file_info(path).mtime_ns}"
    return f"{file.bytes} {Path(file.path).stat().st_mtime_ns}"


def _content(file: File) -> str:
    """Its version, whenever it was written; of a large one, that no job is submitted with, the usual one."""
    return _digest(file.path, version(file)) if file.bytes <= DIGESTED_BYTES else version(file)


@cache
def _digest(path: str, version: str) -> str:
    with local_errors(path), open(path, "rb") as stream:  # noqa: PTH123  (as `expand` gives it)
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Digesting(io.RawIOBase):
    """A binary stream that hashes what is read from it."""

    def __init__(self, stream: Any, name: str) -> None:
        self.stream, self.name, self.digest = stream, name, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.stream.read(len(buffer))
        self.digest.update(data)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.stream.close()
        super().close()


@dataclass
class Opened:
    """A stream of bytes, or of text: undecodable bytes are lone surrogates in it, and line ends are as in the file. Its `name` is the
    file's path."""

    stream: TextIO | BinaryIO
    raw: _Digesting

    def sha256(self) -> str:
        """Of the whole file as it lies there."""
        while self.raw.read(1 << 20):
            pass
        return self.raw.digest.hexdigest()


@contextmanager
def open_file(file: File, binary: bool = False) -> Iterator[Opened]:
    """Raises NotFound, StorageError, and, unless `binary`, DataError for what is no text file."""
    with local_errors(file.path) if file.storage is None else arrow_errors(file.path), _opened(file, binary) as opened:
        yield opened


@contextmanager
def _opened(file: File, binary: bool) -> Iterator[Opened]:
    raw = _Digesting(_open_binary(file), file.path)
    try:
        buffered: Any = io.BufferedReader(raw, 1 << 20)
        if file.path.endswith(".gz"):
            buffered = io.BufferedReader(gzip.GzipFile(fileobj=buffered), 1 << 20)
        if binary:
            yield Opened(buffered, raw)
            return
        head = buffered.peek(8)
        for magic, what, remedy in NOT_TEXT:
            if head.startswith(magic):
                raise DataError(f"is {what}, not text.", where=file.path, remedy=remedy)
        yield Opened(io.TextIOWrapper(buffered, encoding="utf-8-sig", errors="surrogateescape", newline=""), raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"is damaged: {error}.", where=file.path, remedy="Fetch it again.") from None
    finally:
        raw.close()


def _open_binary(file: File) -> Any:
    path = file.path
    if file.storage is not None:
        filesystem, key = file.storage.arrow()
        return filesystem.open_input_stream(key, compression=None)
    if path.startswith("package:"):
        name, _, inside = path.removeprefix("package:").partition("/")
        local = _package(name, path) / inside
    else:
        local = Path(path)
    try:
        return local.open("rb", buffering=0)
    except OSError as error:
        raise NotFound(
            f"cannot be read: {error.strerror}.", where=path, remedy="Every node of the cluster must see it; or use s3://."
        ) from None

"""Tenants' files: kept in parts, so that none is ever whole in memory."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from raybm.core.errors import NotFound, StorageError
from raybm.core.spec import Spec
from raybm.core.storage import Storage

logger = logging.getLogger(__name__)
PART_BYTES = 4 * 2**20
RECORD = "file.json"
UNFINISHED_S = 86_400  # a file or batch without a record that was begun so long ago was broken off
Purpose = Literal["batch", "batch_output"]


class Missing(NotFound):
    """No such file or batch, or another tenant's (404)."""


R = TypeVar("R", bound=Spec)


class FileObject(Spec):
    """OpenAI's file object."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"


class StoredFile(FileObject):
    parts: int

    def wire(self) -> dict[str, Any]:
        return self.model_dump(mode="json", include=set(FileObject.model_fields))


def new_id(prefix: str, now: float) -> str:
    """Ids sort by their time, so that the newest are listed without reading all; 80 random bits make them unguessable."""
    return f"{prefix}{int(now * 1000):012x}{secrets.token_hex(10)}"


def created(id: str) -> float:
    """The time in an id of `new_id`, in seconds."""
    return int(id[-32:-20], 16) / 1000


def folder_name(name: str) -> str:
    """A tenant's or an application's name as a folder's: its digest keeps apart what is not plain."""
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def check_id(id: str, prefix: str) -> str:
    """Raises Missing for what `new_id` never made: it may come from anywhere, and becomes a path."""
    if not re.fullmatch(f"{prefix}[0-9a-f]{{32}}", id):
        raise Missing(f"there is no {id[:100]!r}.")
    return id


def record(cls: type[R], data: bytes, where: str) -> R:
    """Raises StorageError for one that is torn, or of another version of raybm."""
    try:
        return cls.model_validate_json(data)
    except ValidationError:
        raise StorageError("this record cannot be read.", where=where, remedy="Delete its folder, if it is of no use.") from None


def serving_storage(storage: Storage, application: str) -> Storage:
    """Where an application's files and batches are; two applications with one storage do not meet."""
    return storage.at(f"serving/{folder_name(application)}")


class Files:
    """Every method blocks, and raises StorageError."""

    def __init__(self, storage: Storage, clock: Callable[[], float] = time.time) -> None:
        self._storage, self._clock = storage, clock

    def add(
        self, tenant: str, chunks: Iterable[bytes], filename: str, purpose: Purpose, *, expires_after_s: int | None = None, id: str = ""
    ) -> StoredFile:
        """`id`: one made by `new_id` before, so that what an interrupted writing left can be found."""
        id = id or new_id("file-", self._clock())
        folder, size, parts = self._folder(tenant, id), 0, 0
        try:
            for part in _parts(chunks):
                folder.write(f"parts/{parts:08d}", part)
                size, parts = size + len(part), parts + 1
            now = int(self._clock())
            expires_at = now + expires_after_s if expires_after_s else None
            file = StoredFile(id=id, filename=filename, purpose=purpose, bytes=size, parts=parts, created_at=now, expires_at=expires_at)
            folder.write(RECORD, file.model_dump_json().encode())
        except BaseException:
            self._storage.delete(self._path(tenant, id))
            raise
        return file

    def get(self, tenant: str, id: str) -> StoredFile:
        """Raises Missing, also for an expired one."""
        folder = self._folder(tenant, id)
        try:
            file = record(StoredFile, folder.read(RECORD), folder.uri)
        except NotFound:
            raise Missing(f"there is no file {id[:100]!r}.", remedy="GET /v1/files lists those there are.") from None
        if file.expires_at is not None and self._clock() >= file.expires_at:
            raise Missing(f"the file {id} has expired.", remedy="Upload it again.")
        return file

    def content(self, tenant: str, file: StoredFile) -> Iterator[bytes]:
        """Its parts. Raises Missing where it is deleted meanwhile."""
        folder = self._folder(tenant, file.id)
        for part in range(file.parts):
            try:
                yield folder.read(f"parts/{part:08d}")
            except NotFound:
                raise Missing(f"the file {file.id} was deleted.") from None

    def ids(self, tenant: str) -> list[str]:
        """The newest first; of some there may be no file: unfinished, or expired."""
        return self._storage.folders(f"files/{folder_name(tenant)}")[::-1]

    def delete(self, tenant: str, id: str) -> None:
        """Raises Missing."""
        self.get(tenant, id)
        self._storage.delete(self._path(tenant, id))

    def discard(self, tenant: str, ids: Iterable[str | None]) -> None:
        """What there is of them, written to the end or not."""
        for id in ids:
            if id:
                self._storage.delete(self._path(tenant, id))

    def sweep(self) -> None:
        """Deletes what has expired, and what is left of uploads that broke off."""
        for tenant in self._storage.folders("files"):
            for id in self._storage.folders(f"files/{tenant}"):
                folder = self._storage.at(f"files/{tenant}/{id}")
                try:
                    expires_at = record(StoredFile, folder.read(RECORD), folder.uri).expires_at
                except NotFound:
                    expires_at = int(created(id)) + UNFINISHED_S
                except StorageError as error:  # one that cannot be read keeps the others no longer than they should be
                    logger.warning("%s", error)
                    continue
                if expires_at is not None and self._clock() >= expires_at:
                    self._storage.delete(f"files/{tenant}/{id}")

    def _folder(self, tenant: str, id: str) -> Storage:
        return self._storage.at(self._path(tenant, id))

    def _path(self, tenant: str, id: str) -> str:
        return f"files/{folder_name(tenant)}/{check_id(id, 'file-')}"


def _parts(chunks: Iterable[bytes]) -> Iterator[bytes]:
    part = bytearray()
    for chunk in chunks:
        part += chunk
        if len(part) >= PART_BYTES:
            yield bytes(part)
            part.clear()
    if part:
        yield bytes(part)

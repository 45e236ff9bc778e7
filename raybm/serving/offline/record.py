"""A batch as it stands in the storage, and what may change it: the gateway (create, cancel) and the worker, by compare-and-swap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from raybm.core.errors import Conflict, NotFound, UserError
from raybm.core.spec import Spec
from raybm.core.storage import Storage
from raybm.serving.offline.stored import UNFINISHED_S, Missing, check_id, created, folder_name, new_id, record

RECORD = "batch.json"
WINDOW_S = 24 * 3600
SWAPS = 50  # two writers meet once or twice; more is a fault
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify"]
Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
ENDED: tuple[Status, ...] = ("failed", "completed", "expired", "cancelled")


class Mistake(Spec):
    """What is wrong with an input file; `line` counts from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Counts(Spec):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Mistakes(Spec):
    object: Literal["list"] = "list"
    data: tuple[Mistake, ...]


class BatchObject(Spec):
    """OpenAI's batch object."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Endpoint
    input_file_id: str
    completion_window: Literal["24h"]
    status: Status = "validating"
    errors: Mistakes | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = Counts()
    metadata: dict[str, str] | None = None


class Batch(BatchObject):
    tenant: str
    output_id: str | None = None
    """What the output file will be called; `output_file_id` says so once it is there. Who begins to write it gives it a name of its own."""
    error_id: str | None = None
    output_expires_after_s: int | None = None

    def wire(self) -> dict[str, Any]:
        return self.model_dump(mode="json", include=set(BatchObject.model_fields))


class Batches:
    """Every method blocks, and raises StorageError."""

    def __init__(self, storage: Storage, clock: Callable[[], float] = time.time) -> None:
        self._storage, self._clock = storage, clock

    def create(
        self, tenant: str, endpoint: Endpoint, input_file_id: str, metadata: Mapping[str, str] | None, output_expires_after_s: int | None
    ) -> Batch:
        clock = self._clock()
        now = int(clock)
        batch = Batch(
            id=new_id("batch_", clock),
            tenant=tenant,
            endpoint=endpoint,
            input_file_id=input_file_id,
            completion_window="24h",
            created_at=now,
            expires_at=now + WINDOW_S,
            metadata=None if metadata is None else dict(metadata),
            output_expires_after_s=output_expires_after_s,
        )
        self._storage.write(_marker(batch.id, tenant), b"")  # first: a batch that nobody looks for would wait for ever
        self.folder(tenant, batch.id).create(RECORD, batch.model_dump_json().encode())
        return batch

    def get(self, tenant: str, id: str) -> Batch:
        """Raises Missing."""
        return self._read(self.folder(tenant, id), id)[0]

    def change(self, tenant: str, id: str, how: Callable[[Batch], Batch]) -> Batch:
        """Replaces it by what `how` makes of it, which may be called again with what somebody else has written. Raises Missing."""
        folder = self.folder(tenant, id)
        for _ in range(SWAPS):
            batch, tag = self._read(folder, id)
            changed = how(batch)
            if changed == batch:
                return batch
            try:
                folder.replace(RECORD, changed.model_dump_json().encode(), tag)
                return changed
            except Conflict:
                continue
        raise Conflict(f"others have changed it {SWAPS} times.", where=folder.uri)

    def cancel(self, tenant: str, id: str) -> Batch:
        """The worker notices. Raises Missing, and UserError for one that is at its end."""

        def cancelling(batch: Batch) -> Batch:
            now = int(self._clock())
            if batch.status == "validating":  # no request of it has been asked, and it may wait for long until a worker sees to it
                return batch.model_copy(update={"status": "cancelled", "cancelling_at": now, "cancelled_at": now})
            if batch.status == "in_progress":
                return batch.model_copy(update={"status": "cancelling", "cancelling_at": now})
            if batch.status == "cancelling":
                return batch
            raise UserError(f"a batch that is {batch.status} cannot be cancelled.")

        return self.change(tenant, id, cancelling)

    def ids(self, tenant: str) -> list[str]:
        """The newest first; of one that is being created there may be no record yet."""
        return self._storage.folders(f"batches/{folder_name(tenant)}")[::-1]

    def active(self) -> list[str]:
        """Keys of those that are not at their end, the oldest first."""
        return self._storage.keys("active")

    def of(self, key: str) -> Batch | None:
        """The batch of a key of `active`; None: it is being created at this moment."""
        id = _id_of(key)
        try:
            return self._read(self._storage.at(f"batches/{tenant_of(key)}/{id}"), id)[0]
        except Missing:
            return None

    def close(self, batch: Batch) -> None:
        """It is at its end: forget the parts, which the files hold now, and look for it no more."""
        self.folder(batch.tenant, batch.id).delete("parts")
        self._storage.delete(_marker(batch.id, batch.tenant))

    def sweep(self) -> None:
        """Forgets what was to be created, and never was."""
        for key in self.active():
            if self.of(key) is None and self._clock() >= created(_id_of(key)) + UNFINISHED_S:
                self._storage.delete(key)

    def folder(self, tenant: str, id: str) -> Storage:
        return self._storage.at(f"batches/{folder_name(tenant)}/{check_id(id, 'batch_')}")

    def _read(self, folder: Storage, id: str) -> tuple[Batch, str]:
        try:
            data, tag = folder.read_tagged(RECORD)
        except NotFound:
            raise Missing(f"there is no batch {id[:100]!r}.", remedy="GET /v1/batches lists those there are.") from None
        return record(Batch, data, folder.uri), tag


class Results:
    """Rows that are done, in parts that are there whole or not at all. Two that write at once cannot both write the next one: the
    number of a part is its writer's right, so no line is there twice, whatever becomes of the lease."""

    def __init__(self, folder: Storage) -> None:
        self._folder, self._next = folder, 0

    def read(self) -> Iterator[Sequence[bytes]]:
        """The rows of each part; what is appended then comes after them."""
        for key in self._folder.keys("parts"):
            yield self._folder.read(key).split(b"\n")
            self._next = int(key.rpartition("/")[2]) + 1

    def append(self, rows: Sequence[bytes]) -> None:
        """Raises Conflict where somebody else has written meanwhile."""
        self._folder.create(f"parts/{self._next:08d}", b"\n".join(rows))
        self._next += 1


def tenant_of(key: str) -> str:
    """The folder of the tenant of a key of `active`."""
    return key.rpartition(".")[2]


def _id_of(key: str) -> str:
    return key.removeprefix("active/").partition(".")[0]


def _marker(id: str, tenant: str) -> str:
    return f"active/{id}.{folder_name(tenant)}"

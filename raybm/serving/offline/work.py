"""One batch from wherever it stands to its end: check the file, ask the models line by line, keep what is done, write the files."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeVar

from raybm.core.errors import Conflict
from raybm.serving import statuses
from raybm.serving.offline.lines import OVERHEAD_BYTES, Line, check, numbered, requests
from raybm.serving.offline.record import ENDED, Batch, Batches, Counts, Mistake, Mistakes, Results, Status
from raybm.serving.offline.stored import Files, Missing, new_id
from raybm.serving.wire import InvalidRequest

logger = logging.getLogger(__name__)
T = TypeVar("T")
READ_AHEAD = 16  # lines
PART_BYTES = 4 * 2**20
ATTEMPTS = 3  # of a line whose replica died or did not answer in time: it may be the line's fault
DELETED = Mistake(code="file_not_found", message="The input file was deleted.")
EXPIRED = {"code": "batch_expired", "message": "This request was not answered before the batch's completion window ended."}

Ask = Callable[[str, bytes, str], Awaitable[tuple[int, bytes]]]
"""(path, body, tenant) → (HTTP status, body), as a client of the gateway would get it."""


@dataclass(frozen=True)
class Pace:
    poll_s: float = 1.0
    """How often batches are looked for, and whether one is to be cancelled."""
    flush_s: float = 5.0
    """The most work that a worker that dies has done in vain; each is a file in the storage."""
    retry_s: float = 1.0
    """To the second attempt at a model without room; each further wait is twice as long, up to thirty times this."""
    sweep_s: float = 3600.0
    """Between the searches for files that have expired."""


PACE = Pace()


@dataclass(frozen=True)
class Tools:
    """What all batches of a worker share."""

    files: Files
    batches: Batches
    ask: Ask
    slots: Mapping[str, asyncio.Semaphore]
    """Of each model: lines that may be with it at once."""
    max_line_bytes: int
    max_lines: int
    pace: Pace
    clock: Callable[[], float] = time.time


class Work:
    def __init__(self, batch: Batch, tools: Tools) -> None:
        self._batch, self._tools = batch, tools
        self._results = Results(tools.batches.folder(batch.tenant, batch.id))
        self._done = set[str]()
        self._rows, self._bytes, self._flushed = list[bytes](), 0, time.monotonic()
        self._completed = self._failed = 0
        self._writing = asyncio.Lock()
        self._over_with = False  # a thread that still writes stops

    async def run(self) -> None:
        """Raises StorageError; Conflict: somebody else works on it. It can be begun again at any time."""
        if self._batch.status == "validating":
            await self._validate()
        if self._batch.status not in ENDED:
            await asyncio.to_thread(self._resume)
            if self._batch.status == "in_progress":
                await self._until(self._feed())
                await self._flush()
            await self._finish()
        batch = self._batch
        logger.info("batch %s of %s: %s, %s", batch.id, batch.tenant, batch.status, batch.request_counts.model_dump())
        await asyncio.to_thread(self._tools.batches.close, batch)

    async def _validate(self) -> None:
        tools, batch = self._tools, self._batch
        try:
            total, mistakes = await asyncio.to_thread(lambda: check(self._lines(), batch.endpoint, tools.slots, tools.max_lines))
        except Missing:
            total, mistakes = 0, (DELETED,)
        now, counts = int(tools.clock()), Counts(total=total)

        def checked(batch: Batch) -> Batch:
            if batch.status != "validating":  # cancelled meanwhile
                return batch
            return (
                _to(batch, "failed", now, errors=Mistakes(data=mistakes))
                if mistakes
                else _to(batch, "in_progress", now, request_counts=counts)
            )

        await self._change(checked)

    def _resume(self) -> None:
        for rows in self._results.read():
            for row in rows:
                self._count(json.loads(row))

    async def _feed(self) -> None:
        """Reads on as the models have room."""
        try:
            async with asyncio.TaskGroup() as group:
                async for line in self._left():
                    slot = self._tools.slots.get(line.model)
                    if slot is None:  # a model that is served no more
                        await self._answer(line)
                        continue
                    await slot.acquire()
                    group.create_task(self._answer(line)).add_done_callback(lambda _, slot=slot: slot.release())  # type: ignore[misc]
        except* Missing:
            logger.warning("batch %s: its input file was deleted", self._batch.id)  # what is not done becomes so in `_finish`

    async def _left(self) -> AsyncIterator[Line]:
        """The requests that are not done. Raises Missing."""
        lines = requests(self._lines())
        while ahead := await asyncio.to_thread(lambda: list(islice(lines, READ_AHEAD))):
            for line in ahead:
                if line.custom_id not in self._done:
                    yield line

    async def _until(self, feeding: Any) -> None:
        """Feeds until all is done, or the batch is to be cancelled, or its time is over; writes what is done now and then."""
        task = asyncio.ensure_future(feeding)
        try:
            while not (await asyncio.wait([task], timeout=self._tools.pace.poll_s))[0]:
                if time.monotonic() - self._flushed >= self._tools.pace.flush_s:
                    await self._flush()
                await self._change(lambda b: b)  # nothing: reads what others have written
                if self._batch.status != "in_progress" or self._over:
                    return
            task.result()
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _answer(self, line: Line) -> None:
        status, body = await self._asked(line)
        response = {"status_code": status, "request_id": uuid.uuid4().hex, "body": json.loads(body)}
        await self._add(line.custom_id, response, None)

    async def _asked(self, line: Line) -> tuple[int, bytes]:
        """The model's answer; asks again while it has no room."""
        if line.body.get("stream"):
            refused = statuses.response(InvalidRequest("stream: the answers of a batch are no streams; leave it out.", param="stream"))
            return refused.status_code, bytes(refused.body)
        body, attempts, wait_s = json.dumps(line.body, ensure_ascii=False, separators=(",", ":")).encode(), 0, self._tools.pace.retry_s
        while True:
            status, answer = await self._tools.ask(line.url, body, self._batch.tenant)
            if status not in (503, 504):
                return status, answer
            if status == 504 or json.loads(answer)["error"]["code"] == "replica_lost":
                attempts += 1
                if attempts == ATTEMPTS:
                    return status, answer
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, 30 * self._tools.pace.retry_s)

    async def _add(self, custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> None:
        fields = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
        row = json.dumps(fields, separators=(",", ":")).encode()  # ASCII: many a client splits lines at U+2028 too
        self._rows.append(row)
        self._count(fields)
        self._bytes += len(row)
        if self._bytes >= PART_BYTES:
            await self._flush()

    def _count(self, row: dict[str, Any]) -> None:
        self._done.add(row["custom_id"])
        if _good(row):
            self._completed += 1
        else:
            self._failed += 1

    async def _flush(self) -> None:
        """What is done becomes a part, and the counts say so. Goes on to its end also where its caller is cancelled: what has begun
        to be written must be known to be."""
        await asyncio.shield(self._write())

    async def _write(self) -> None:
        async with self._writing:
            rows, self._rows, self._bytes, self._flushed = self._rows, [], 0, time.monotonic()
            if not rows:
                return
            completed, failed = self._completed, self._failed
            try:
                await self._change(self._open)  # where it is at its end its parts are gone, and nothing would say so
                await asyncio.to_thread(self._results.append, rows)
            except BaseException:
                self._rows[:0] = rows  # not written, so not forgotten: the next to flush meets the fault too
                raise

            def counted(batch: Batch) -> Batch:
                counts = Counts(total=self._open(batch).request_counts.total, completed=completed, failed=failed)
                return batch.model_copy(update={"request_counts": counts})

            await self._change(counted)

    async def _finish(self) -> None:
        """The two files, and the last status. It can be begun as often as it takes, also by two at once: each writes files of its own, and
        the names in the record say whose count."""
        tools, tenant, now = self._tools, self._batch.tenant, self._tools.clock()
        left: tuple[str | None, ...] = ()
        output, error = new_id("file-", now), new_id("file-", now)

        def begun(batch: Batch) -> Batch:
            nonlocal left
            left = self._open(batch).output_id, batch.error_id
            return (_to(batch, "finalizing", int(now)) if batch.status == "in_progress" else batch).model_copy(
                update={"output_id": output, "error_id": error}
            )

        await self._change(begun)
        await asyncio.to_thread(tools.files.discard, tenant, left)
        try:
            await self._end(output, error)
        except Conflict:  # the record is not ours, nor names ours; where this is cancelled it may
            await asyncio.to_thread(tools.files.discard, tenant, (output, error))
            raise
        finally:
            self._over_with = True

    async def _end(self, output: str, error: str) -> None:
        end: Status = "completed"
        mistakes = None
        if self._batch.status == "cancelling":
            end = "cancelled"
        elif len(self._done) < self._batch.request_counts.total:
            try:
                await self._expire()
                end = "expired"
            except Missing:
                end, mistakes = "failed", Mistakes(data=(DELETED,))
        try:
            files = {
                "output_file_id": await asyncio.to_thread(self._file, output, True),
                "error_file_id": await asyncio.to_thread(self._file, error, False),
            }
        except BaseException:
            self._over_with = True
            await asyncio.to_thread(self._tools.files.discard, self._batch.tenant, (output, error))
            raise
        counts = Counts(total=self._batch.request_counts.total, completed=self._completed, failed=self._failed)
        now = int(self._tools.clock())

        def finished(batch: Batch) -> Batch:
            if batch.output_id != output:
                raise self._taken()
            return _to(batch, end, now, request_counts=counts, errors=mistakes, **files)

        await self._change(finished)

    def _open(self, batch: Batch) -> Batch:
        """The batch. Raises Conflict where somebody else has brought it to its end."""
        if batch.status in ENDED:
            raise self._taken()
        return batch

    def _taken(self) -> Conflict:
        where = self._tools.batches.folder(self._batch.tenant, self._batch.id).uri
        return Conflict("another worker has taken over while this one was quiet.", where=where)

    async def _expire(self) -> None:
        """An error for each line that was not answered in time. Raises Missing."""
        async for line in self._left():
            await self._add(line.custom_id, None, EXPIRED)
        await self._flush()

    def _file(self, id: str, good: bool) -> str | None:
        """The rows of one kind as the file `id`; None where there are none."""
        if not (self._completed if good else self._failed):
            return None

        def chunks() -> Iterator[bytes]:
            for rows in chain(self._results.read(), [()]):  # and at the end
                if self._over_with:
                    raise self._taken()
                yield from (row + b"\n" for row in rows if _good(json.loads(row)) == good)

        batch, kind = self._batch, "output" if good else "error"
        name, kept_s = f"{batch.id}_{kind}.jsonl", batch.output_expires_after_s
        self._tools.files.add(batch.tenant, chunks(), name, "batch_output", expires_after_s=kept_s, id=id)
        if self._over_with:
            self._tools.files.discard(batch.tenant, (id,))
            raise self._taken()
        return id

    async def _change(self, how: Callable[[Batch], Batch]) -> None:
        self._batch = await asyncio.to_thread(self._tools.batches.change, self._batch.tenant, self._batch.id, how)

    def _lines(self) -> Iterator[tuple[int, bytes | None]]:
        """Raises Missing, at its first step."""
        files, tenant = self._tools.files, self._batch.tenant

        def chunks() -> Iterator[bytes]:
            yield from files.content(tenant, files.get(tenant, self._batch.input_file_id))

        return numbered(chunks(), self._tools.max_line_bytes + OVERHEAD_BYTES)

    @property
    def _over(self) -> bool:
        return self._tools.clock() >= self._batch.expires_at


def _to(batch: Batch, status: Status, now: int, **more: Any) -> Batch:
    return batch.model_copy(update={"status": status, f"{status}_at": now, **more})


def _good(row: dict[str, Any]) -> bool:
    """Whether it belongs into the output file, not that of errors."""
    return row["response"] is not None and row["response"]["status_code"] == 200

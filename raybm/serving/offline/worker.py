"""Finds batches that are not at their end, also those that another worker left, and works on several at once."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from raybm.core.errors import Conflict, DeadlineExceeded
from raybm.core.lease import QUIET_S, Lease
from raybm.core.storage import Storage
from raybm.serving.gateway import Model
from raybm.serving.offline.asgi import Offline, post
from raybm.serving.offline.record import Batch, Batches, tenant_of
from raybm.serving.offline.stored import Files
from raybm.serving.offline.work import PACE, Pace, Tools, Work
from raybm.serving.routes import create_app
from raybm.spec.serve import GatewaySpec, model_of

logger = logging.getLogger(__name__)
RUNNING_MAX = 32  # batches at once; they take turns at the models' room, line by line
RUNNING_MAX_OF_TENANT = 2  # so that one's many do not keep the others waiting
AGAIN_S = 5.0  # after a fault, such as a storage that did not answer
Clock = Callable[[], float]
TAKE_OVER_S = QUIET_S + 10  # a worker on a node that is gone is taken for dead by then


class Worker:
    """`run` never ends. Each batch has a lease, so that of two workers (a deployment that is being replaced) one has it."""

    def __init__(self, tools: Tools) -> None:
        self._tools, self._holder = tools, uuid.uuid4().hex
        self._running: dict[str, asyncio.Task[None]] = {}
        self._not_before: dict[str, float] = {}
        self._waiting = ThreadPoolExecutor(RUNNING_MAX, thread_name_prefix="raybm-lease")  # for leases: they may take their time

    async def run(self) -> None:
        pace = self._tools.pace
        await asyncio.gather(_every(pace.poll_s, self._look), _every(pace.sweep_s, self._sweep))

    async def _sweep(self) -> None:
        await asyncio.to_thread(self._tools.files.sweep)
        await asyncio.to_thread(self._tools.batches.sweep)

    async def _look(self) -> None:
        self._running = {key: task for key, task in self._running.items() if not task.done()}
        keys = await asyncio.to_thread(self._tools.batches.active)
        self._not_before = {key: when for key, when in self._not_before.items() if key in keys}
        for key in keys:
            if len(self._running) >= RUNNING_MAX:
                break
            if key in self._running or time.monotonic() < self._not_before.get(key, 0.0):
                continue
            if sum(tenant_of(other) == tenant_of(key) for other in self._running) < RUNNING_MAX_OF_TENANT:
                self._running[key] = asyncio.create_task(self._work(key))

    async def _work(self, key: str) -> None:
        try:
            batch = await asyncio.to_thread(self._tools.batches.of, key)
            if batch is None:
                return
            await self._alone(key, batch)
        except DeadlineExceeded:
            logger.info("%s: another worker has it", key)
        except Exception:  # an edge: one batch's fault is not the others'
            logger.exception("%s will be begun again", key)
        self._not_before[key] = time.monotonic() + AGAIN_S

    async def _alone(self, key: str, batch: Batch) -> None:
        """Works on it under its lease. Raises DeadlineExceeded: somebody who is alive has it."""
        loop = asyncio.get_running_loop()
        folder = self._tools.batches.folder(batch.tenant, batch.id)

        held = asyncio.Event()

        async def begin() -> None:
            await held.wait()
            await self._begin(key)

        work = asyncio.create_task(begin())

        def lost(_: Conflict) -> None:
            loop.call_soon_threadsafe(work.cancel)

        lease = Lease(folder, self._holder, TAKE_OVER_S, logger.info, lost)

        def let_go(entering: Future[Lease]) -> None:
            if not entering.cancelled() and entering.exception() is None:
                lease.__exit__(None, None, None)

        entering = self._waiting.submit(lease.__enter__)
        try:
            await asyncio.wrap_future(entering)
        except BaseException:
            work.cancel()
            entering.add_done_callback(let_go)  # its thread may get the lease yet, and would renew it for good
            raise
        held.set()
        try:
            await asyncio.wait([work])
        finally:
            work.cancel()
            await asyncio.to_thread(lease.__exit__, None, None, None)
        if work.cancelled():
            raise Conflict("another worker has taken over while this one was quiet.", where=folder.uri)
        work.result()

    async def _begin(self, key: str) -> None:
        batch = await asyncio.to_thread(self._tools.batches.of, key)  # again: who had the lease before may have brought it on
        if batch is not None:
            await Work(batch, self._tools).run()


async def _every(seconds: float, step: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await step()
        except Exception:  # an edge: whatever it is, what runs goes on, and the next time may find it mended
            logger.exception("the worker of batches")
            await asyncio.sleep(AGAIN_S)
        await asyncio.sleep(seconds)


def offline_worker(
    spec: GatewaySpec,
    models: Mapping[str, Model],
    room: Mapping[str, int],
    storage: Storage,
    pace: Pace = PACE,
    clock: Clock = time.time,
    versions: Mapping[str, str] | None = None,
) -> Worker:
    """The worker of one application. `room`: of each model, lines that may be with it and its adapters at once; `storage`: of
    `serving_storage`; `versions`: of models, for the metrics."""
    app = create_app(Offline(spec, models, _none_missing, versions=versions))
    slots = {name: asyncio.Semaphore(lines) for name, lines in room.items()}

    async def ask(path: str, body: bytes, tenant: str) -> tuple[int, bytes]:
        return await post(app, path, body, tenant)

    tools = Tools(
        files=Files(storage, clock),
        batches=Batches(storage, clock),
        ask=ask,
        slots={name: slots[model_of(name)] for name in models},
        max_line_bytes=spec.max_body_bytes,
        max_lines=spec.max_batch_lines,
        pace=pace,
        clock=clock,
    )
    return Worker(tools)


async def _none_missing() -> dict[str, str]:
    return {}

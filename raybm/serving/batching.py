"""Batches of what several requests ask for at about the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

LONGEST = 4
"""Times the pause, that the first of a batch waits at the most while others keep coming."""


class Batcher(Generic[T, R]):
    """One batch is computed at a time, when it is full or nobody has come for a pause.

    A fixed wait is either long for who comes alone, or short where many come one by one, as through a gateway that shares its processors
    with the model.
    """

    def __init__(self, compute: Callable[[list[T]], Awaitable[Sequence[R | Exception]]], most: int, pause_s: float) -> None:
        """`compute`: results in order, each of which may be an error."""
        self._compute, self._most, self._pause_s = compute, most, pause_s
        self._waiting: list[tuple[T, asyncio.Future[R | Exception]]] = []
        self._came = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def ask(self, item: T) -> R | Exception:
        """The item's result. Raises what `compute` raises. A caller that is cancelled is left out of a batch that is not computed yet."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R | Exception] = loop.create_future()
        self._waiting.append((item, answer))
        self._came.set()
        if self._running is None or self._running.done():
            self._running = loop.create_task(self._run(), context=Context())  # on behalf of no single request
        return await answer

    async def _run(self) -> None:
        while self._waiting:
            await self._gathered()
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            try:
                results = await self._compute([item for item, _ in batch]) if batch else []
            except Exception as error:  # noqa: BLE001  theirs who asked
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for answer, result in zip((answer for _, answer in batch), results, strict=True):
                if not answer.done():  # its caller is still there
                    answer.set_result(result)

    async def _gathered(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + LONGEST * self._pause_s
        while self._here() < self._most:
            self._came.clear()
            try:
                async with asyncio.timeout_at(min(end, loop.time() + self._pause_s)):
                    await self._came.wait()
            except TimeoutError:
                return

    def _here(self) -> int:
        """Those whose callers have not left."""
        self._waiting = [(item, answer) for item, answer in self._waiting if not answer.done()]
        return len(self._waiting)

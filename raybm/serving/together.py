"""Several answers to one request, side by side, and until when they are waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def all_of(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What each gives, in order. Where one raises, the others are cancelled first."""
    if len(works) == 1:
        return [await works[0]]
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _end(tasks)


async def merged(sources: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[tuple[int, T]]:
    """(index of its source, item), as they come. Where one raises, or this is closed, all are closed."""
    if len(sources) == 1:
        try:
            async for item in sources[0]:
                yield 0, item
        finally:
            await sources[0].aclose()
        return
    waiting = {asyncio.ensure_future(anext(source)): index for index, source in enumerate(sources)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                index = waiting.pop(task)
                try:
                    item = task.result()
                except StopAsyncIteration:
                    continue
                waiting[asyncio.ensure_future(anext(sources[index]))] = index
                yield index, item
    finally:
        await _end(list(waiting))
        for source in sources:
            await source.aclose()


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Until:
    """A deadline of the event loop's clock for all items of an iterator, by one timer: asyncio.timeout_at would set one for each."""

    def __init__(self, deadline: float) -> None:
        self._waiting: asyncio.Task[Any] | None = None
        self._over = self._struck = False
        self._timer = asyncio.get_running_loop().call_at(deadline, self._end)

    async def next(self, source: AsyncGenerator[T]) -> T:
        """Raises TimeoutError, and what the source raises."""
        if self._over:
            raise TimeoutError
        task = asyncio.current_task()
        assert task is not None
        self._waiting, cancelled = task, task.cancelling()
        try:
            return await anext(source)
        except asyncio.CancelledError:
            if self._struck and task.cancelling() <= cancelled + 1:  # by nobody else
                raise TimeoutError from None
            raise
        finally:
            self._waiting = None
            if self._struck:
                task.uncancel()
                self._struck = False

    def close(self) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        self._over = True
        if self._waiting is not None:
            self._struck = self._waiting.cancel()

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from raybm.serving.together import Until


async def slow(*seconds: float) -> AsyncGenerator[float]:
    for one in seconds:
        await asyncio.sleep(one)
        yield one


async def within(allowed_s: float, source: AsyncGenerator[float], pause_s: float = 0.0) -> list[float]:
    """Its items, as far as they come before the deadline."""
    until, found = Until(asyncio.get_running_loop().time() + allowed_s), []
    try:
        while True:
            found.append(await until.next(source))
            await asyncio.sleep(pause_s)
    except TimeoutError:
        return [*found, -1.0]
    except StopAsyncIteration:
        return found
    finally:
        until.close()
        await source.aclose()


def test_items_come_until_the_deadline() -> None:
    assert asyncio.run(within(60, slow(0, 0.01))) == [0, 0.01]
    assert asyncio.run(within(0.2, slow(0, 60))) == [0, -1]
    assert asyncio.run(within(0.05, slow(0, 0), pause_s=0.2)) == [0, -1]  # it was over while nobody waited


def test_who_waits_can_be_cancelled() -> None:
    async def cancelled() -> None:
        waiting = asyncio.create_task(within(60, slow(60)))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await waiting

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


def test_the_task_that_was_timed_out_goes_on() -> None:
    async def twice() -> tuple[list[float], int]:
        found = await within(0.01, slow(60))
        await asyncio.sleep(0)  # a cancellation that was left over would end it here
        task = asyncio.current_task()
        assert task is not None
        return found, task.cancelling()

    assert asyncio.run(twice()) == ([-1], 0)

"""An event loop of its own, asked from others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing

import pytest

from raybm.core.errors import RaybmError
from raybm.engines.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    with closing(Loop("other")) as made:
        yield made


class Source:
    def __init__(self) -> None:
        self.closed, self.threads = threading.Event(), set[str]()

    async def count(self, end: int) -> AsyncGenerator[int, None]:
        try:
            for number in range(end):
                self.threads.add(threading.current_thread().name)
                yield number
                await asyncio.sleep(0)
            if end == 3:
                raise ValueError("three")
        finally:
            self.closed.set()


async def collected(loop: Loop, source: Source, end: int) -> list[int]:
    return [number async for number in loop.stream(lambda: source.count(end))]


def test_items_come_over_in_order_and_run_there(loop: Loop) -> None:
    source = Source()
    for _ in range(2):  # from two loops, one after the other
        assert asyncio.run(collected(loop, source, 100)) == list(range(100))
    assert source.threads == {"other"} and source.closed.is_set()


def test_errors_come_over(loop: Loop) -> None:
    with pytest.raises(ValueError, match="three"):
        asyncio.run(collected(loop, Source(), 3))
    with pytest.raises(ZeroDivisionError):
        loop.run(_broken())


async def _broken() -> None:
    _ = 1 / 0


def test_closing_ends_the_source(loop: Loop) -> None:
    source = Source()

    async def scene() -> None:
        numbers = loop.stream(lambda: source.count(10**9))
        assert await anext(numbers) == 0
        await numbers.aclose()
        assert await asyncio.to_thread(source.closed.wait, 10)

    asyncio.run(scene())


def test_closing_the_loop_ends_who_waits(loop: Loop) -> None:
    source = Source()

    async def scene() -> None:
        numbers = loop.stream(lambda: source.count(10**9))
        await anext(numbers)
        await asyncio.to_thread(loop.close)
        with pytest.raises(RaybmError, match="closed"):
            async for _ in numbers:
                pass

    asyncio.run(asyncio.wait_for(scene(), 30))
    assert source.closed.is_set()
    loop.close()

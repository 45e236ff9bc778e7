"""Which requests meet in a batch, and what one has of another's end: nothing."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest

from raybm.serving.batching import Batcher

MINUTE = 60.0


class Doubles:
    """Computes, and keeps what it was asked together; holds a batch until `go`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, numbers: list[int]) -> list[int | Exception]:
        self.batches.append(numbers)
        await self.go.wait()
        if -1 in numbers:
            raise RuntimeError("broken")
        return [ValueError("odd") if number % 2 else 2 * number for number in numbers]


def test_a_full_batch_does_not_wait() -> None:
    async def go() -> None:
        doubles = Doubles()
        batcher = Batcher(doubles, 2, MINUTE)
        assert await asyncio.gather(*map(batcher.ask, (2, 4, 6, 8))) == [4, 8, 12, 16]
        assert doubles.batches == [[2, 4], [6, 8]]

    asyncio.run(asyncio.wait_for(go(), 30))


def test_who_comes_within_the_pause_comes_along() -> None:
    async def go() -> None:
        doubles = Doubles()
        batcher = Batcher(doubles, 9, 2.0)
        first = asyncio.create_task(batcher.ask(2))
        await asyncio.sleep(0.01)
        assert [await batcher.ask(4), await first] == [8, 4] and doubles.batches == [[2, 4]]

    asyncio.run(go())


def test_who_keeps_coming_does_not_keep_the_first_waiting() -> None:
    async def go() -> None:
        doubles, pause = Doubles(), 0.05
        batcher = Batcher(doubles, 1_000_000, pause)
        asked = []
        while not doubles.batches:  # which would be never
            asked.append(asyncio.create_task(batcher.ask(2)))
            await asyncio.sleep(pause / 5)
        await asyncio.gather(*asked)

    asyncio.run(asyncio.wait_for(go(), 30))


def test_what_comes_while_a_batch_is_computed_is_the_next_one() -> None:
    async def go() -> None:
        doubles = Doubles()
        batcher = Batcher(doubles, 8, 0.0)
        doubles.go.clear()
        first = asyncio.create_task(batcher.ask(2))
        while not doubles.batches:
            await asyncio.sleep(0)
        rest = [asyncio.create_task(batcher.ask(number)) for number in (4, 6, 8)]
        await asyncio.sleep(0.01)
        assert doubles.batches == [[2]]
        doubles.go.set()
        assert await asyncio.gather(first, *rest) == [4, 8, 12, 16] and doubles.batches[1:] == [[4, 6, 8]]

    asyncio.run(asyncio.wait_for(go(), 30))


def test_errors_are_their_own_requests_and_those_of_a_batch_everybodys() -> None:
    async def go() -> None:
        doubles = Doubles()
        batcher = Batcher(doubles, 2, MINUTE)
        odd, even = await asyncio.gather(batcher.ask(3), batcher.ask(4))
        assert isinstance(odd, ValueError) and even == 8
        broken = await asyncio.gather(batcher.ask(-1), batcher.ask(4), return_exceptions=True)
        assert [str(error) for error in broken] == ["broken", "broken"]
        with pytest.raises(RuntimeError, match="broken"):
            await asyncio.gather(batcher.ask(-1), batcher.ask(4))
        assert await asyncio.gather(batcher.ask(4), batcher.ask(6)) == [8, 12]

    asyncio.run(asyncio.wait_for(go(), 30))


def test_who_has_left_is_not_computed() -> None:
    async def go() -> None:
        doubles = Doubles()
        batcher = Batcher(doubles, 3, MINUTE)
        leaves = asyncio.create_task(batcher.ask(2))
        await asyncio.sleep(0)
        leaves.cancel()
        assert await asyncio.gather(*map(batcher.ask, (4, 6, 8))) == [8, 12, 16]
        assert doubles.batches == [[4, 6, 8]]
        doubles.go.clear()
        late = [asyncio.create_task(batcher.ask(number)) for number in (2, 4, 6)]
        while len(doubles.batches) < 2:
            await asyncio.sleep(0)
        late[0].cancel()
        doubles.go.set()
        assert await asyncio.gather(*late[1:]) == [8, 12]

    asyncio.run(asyncio.wait_for(go(), 30))


def test_a_batch_is_computed_on_behalf_of_no_single_request() -> None:
    request: ContextVar[str] = ContextVar("request", default="none")

    async def compute(numbers: list[int]) -> list[int | Exception | str]:
        return [request.get() for _ in numbers]

    async def go() -> None:
        request.set("mine")
        assert await Batcher(compute, 1, 0.0).ask(1) == "none"

    asyncio.run(go())

"""An event loop in a thread of its own: what is bound to one loop can then be asked from any."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from raybm.core.errors import RaybmError

T = TypeVar("T")
CLOSE_TIMEOUT_S = 10.0


class Loop:
    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """What the work gives; for threads without a loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    async def stream(self, make: Callable[[], AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
        """The items of a generator that runs over there. Closing this closes it."""
        here = asyncio.get_running_loop()
        items: asyncio.Queue[tuple[T | None, BaseException | None, bool]] = asyncio.Queue()

        def put(item: T | None = None, error: BaseException | None = None, end: bool = False) -> None:
            if not here.is_closed():
                here.call_soon_threadsafe(items.put_nowait, (item, error, end))

        async def pump() -> None:
            source = make()
            try:
                async for item in source:
                    put(item)
                put(end=True)
            except asyncio.CancelledError:
                put(error=RaybmError("the engine was closed.", remedy="Send the request again."))
                raise
            except Exception as error:  # noqa: BLE001  it is raised where the answer is waited for
                put(error=error)
            finally:
                await source.aclose()

        pumping = asyncio.run_coroutine_threadsafe(pump(), self._loop)
        try:
            while True:
                item, error, end = await items.get()
                if error is not None:
                    raise error
                if end:
                    return
                yield item  # type: ignore[misc]  # neither an error nor the end
        finally:
            pumping.cancel()

    def close(self) -> None:
        """Ends what runs."""
        if self._loop.is_closed():
            return

        async def end() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        try:
            self.run(end(), CLOSE_TIMEOUT_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_TIMEOUT_S)
            if not self._loop.is_running():
                self._loop.close()

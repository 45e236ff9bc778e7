"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), as OpenAI's streams use them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Any

from pydantic_core import to_json
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from raybm.engines.protocol import Delta
from raybm.serving import statuses, wire

logger = logging.getLogger(__name__)
LAST_WORDS_S = 5.0  # for the error event of a stream that met its deadline


class Bounded(StreamingResponse):
    """Ends at `deadline`, of the event loop's clock, however slowly the client reads."""

    def __init__(self, content: Iterable[bytes] | AsyncIterator[bytes], deadline: float, **settings: Any) -> None:
        super().__init__(content, **settings)
        self._deadline = deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout_at(self._deadline):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            logger.info("a client that did not read its answer was let go")  # the server closes what was not completed


class Events(Bounded):
    """Streams events and closes their source when they end, or when the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[bytes], source: AsyncGenerator[Any], deadline: float) -> None:
        """The source keeps the deadline too; but it is not asked while a client does not read."""
        super().__init__(content, deadline + LAST_WORDS_S, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._source.aclose()


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + to_json(data) + b"\n\n"


async def events(
    query: wire.Generation, first: tuple[int, Delta], rest: AsyncIterator[tuple[int, Delta]], broken: Callable[[Exception], None]
) -> AsyncIterator[bytes]:
    """The chunks of all choices (index, piece), their usage where asked for, [DONE]. What breaks on the way becomes an error event, and
    no [DONE]; `broken` is told of it."""
    head = query.head(chunk=True)
    if query.stream_options.include_usage:
        head["usage"] = None
    following: tuple[int, Delta] | None = first
    begun, tokens, prompt_tokens = set[int](), 0, 0
    try:
        while following is not None:
            index, delta = following
            tokens, prompt_tokens = tokens + delta.tokens, delta.prompt_tokens
            if index not in begun or delta.text or delta.calls or delta.logprobs or delta.finish_reason:
                yield event(head | {"choices": [query.piece(delta, index, first=index not in begun)]})
                begun.add(index)
            following = await anext(rest, None)
    except Exception as error:  # noqa: BLE001  an edge: the status line is out, so the error goes into the stream
        broken(error)
        yield event(statuses.body(statuses.cause(error)))
        return
    if query.stream_options.include_usage:
        yield event(head | {"choices": [], "usage": wire.usage(prompt_tokens, tokens)})
    yield b"data: [DONE]\n\n"

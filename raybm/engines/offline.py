"""An engine asked many things at once from one thread: evaluation and offline prediction."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from raybm.engines.protocol import GenerateRequest, Generates


def ask(engine: Any, rows: Sequence[Mapping[str, Any]], batch: int, max_tokens: int) -> list[dict[str, Any]]:
    """Rows of the signature's inputs → rows of its outputs, in order. Generation is greedy, up to `max_tokens`; the engine must
    queue 2 × `batch` requests. Raises what the engine raises."""
    protocols = engine.signature.protocols
    if "predicts" in protocols:
        return list(engine.predict(rows))
    if "embeds" in protocols:
        return [{"embedding": vector} for vector in engine.embed([row["text"] for row in rows]).vectors]
    futures = generated(engine, [request(row, max_tokens) for row in rows], 2 * batch)
    return [{"text": future.result()} for future in futures]


def request(row: Mapping[str, Any], max_tokens: int) -> GenerateRequest:
    """Greedy, for a row with `messages` or `prompt`."""
    messages = row.get("messages")
    return GenerateRequest(messages, None if messages else row["prompt"], max_tokens, clip=True, temperature=0.0)


def generated(engine: Generates, requests: Sequence[GenerateRequest], at_once: int) -> list[Future[str]]:
    """The texts, to be waited for; an event loop in a thread of its own keeps `at_once` requests with the engine."""
    loop, gate = asyncio.new_event_loop(), asyncio.Semaphore(at_once)

    async def answer(one: GenerateRequest) -> str:
        async with gate:
            return "".join([delta.text async for delta in engine.generate(one)])

    futures = [asyncio.run_coroutine_threadsafe(answer(one), loop) for one in requests]
    thread = threading.Thread(target=loop.run_until_complete, args=(_all(futures),), name="answers", daemon=True)
    thread.start()
    return futures


async def _all(futures: Sequence[Future[str]]) -> None:
    await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)

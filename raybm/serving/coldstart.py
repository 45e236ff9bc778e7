"""How long a replica's start takes, by part: process, imports, fetch, weights, warm-up."""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import psutil

from raybm.core.errors import RaybmError
from raybm.engines.protocol import GenerateRequest
from raybm.spec.serve import ServedModel

logger = logging.getLogger(__name__)

_parts: ContextVar[dict[str, float]] = ContextVar("parts")


@contextmanager
def part(name: str) -> Iterator[None]:
    """Measures a part of the start that `started` is at."""
    begun = time.monotonic()
    yield
    _parts.get({})[name] = time.monotonic() - begun


async def started(load: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The engine, warm, and the seconds that each part took. The process' part begins with the process (Ray keeps some in stock)."""
    parts = {"process": time.time() - psutil.Process().create_time()}
    _parts.set(parts)
    engine = await asyncio.to_thread(load)  # off the event loop, so that Serve's health checks are answered meanwhile
    with part("warm-up"):
        await _warm_up(engine)
    return engine, parts


def load(model: ServedModel, storage: str, *prefill_handle: Any) -> Any:
    """Fetches the model's files and builds its engine, with Serve's handle of the replicas that read its prompts, where there are such.
    Raises NotFound, Unsupported, StorageError."""
    with part("imports"):
        importlib.import_module(type(model.engine).__module__.removesuffix("spec") + "engine")  # each engine's folder has the two
        from raybm.core.storage import open_storage
        from raybm.models.references import resolve
    opened = open_storage(storage)
    with part("fetch"):
        assert model.ref is not None  # what has no weights has no replicas
        resolve(model.ref, opened)
    with part("weights"):
        return model.engine.load(model.ref, opened, *prefill_handle)


async def _warm_up(engine: Any) -> None:
    """The first computation takes longer than those after it; no client should wait for it. One that the model refuses is no reason
    not to start."""
    can = engine.signature.protocols
    try:
        if "generates" in can:
            deltas = engine.generate(GenerateRequest(prompt="warm-up", max_tokens=1))
            async for _ in deltas:
                pass
        if "embeds" in can and engine.signature.inputs == ("text",):
            await asyncio.to_thread(engine.embed, ["warm-up"])
        if "predicts" in can and engine.signature.inputs == ("text",):
            await asyncio.to_thread(engine.predict, [{"text": "warm-up"}])
    except RaybmError as error:
        logger.warning("the warm-up did not work: %s", error)


def line(parts: dict[str, float]) -> str:
    return f"{sum(parts.values()):.1f} s (" + ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items()) + ")"

"""A gateway with /v1/files and /v1/batches over ASGI, the worker and the models, all in the process of the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai

from raybm.core.storage import Storage
from raybm.engines.protocol import Answer
from raybm.serving import batches, files
from raybm.serving.auth import new_api_key
from raybm.serving.gateway import Gateway
from raybm.serving.offline.record import Batches
from raybm.serving.offline.stored import Files
from raybm.serving.offline.work import Pace
from raybm.serving.offline.worker import offline_worker
from raybm.serving.routes import create_app
from raybm.spec.serve import GatewaySpec
from tests.fakes import EchoEngine, LengthClassifier, LocalModel

ACME, OTHER = new_api_key(), new_api_key()
KEYS = [{"tenant": "acme", "sha256": ACME[1]}, {"tenant": "other", "sha256": OTHER[1]}]
PACE = Pace(poll_s=0.01, flush_s=0.02, retry_s=0.01)
CHAT = "/v1/chat/completions"


class Gated(LocalModel):
    """Answers as long as `allowed` is not used up; then waits, and says so. Counts how often each prompt was asked."""

    def __init__(self, allowed: int = 10**9) -> None:
        super().__init__(EchoEngine())
        self.allowed, self.asked, self.order = allowed, dict[str, int](), list[str]()
        self.inside = self.most = self.left = 0
        self.open = asyncio.Event()

    async def complete(self, request: Any) -> Answer:
        text = request.messages[-1]["content"]
        self.asked[text] = self.asked.get(text, 0) + 1
        self.order.append(text)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            self.allowed -= 1
            if self.allowed < 0:
                await self.open.wait()
            return await super().complete(request)
        finally:
            self.inside -= 1
            self.left += 1


class House:
    """A gateway and, as long as it runs, a worker, which meet in the storage only."""

    def __init__(self, storage: Storage, models: dict[str, Any] | None = None, room: int = 4, **spec: Any) -> None:
        self.storage, self.models = storage, models or {"chat": Gated(), "size": LocalModel(LengthClassifier())}
        self.spec = GatewaySpec.parse({"api_keys": KEYS, **spec})
        self.room, self.now = dict.fromkeys(self.models, room), 1_800_000_000.0
        self.files, self.batches = Files(storage, self.clock), Batches(storage, self.clock)
        gateway = Gateway(self.spec, self.models, nothing_missing)
        self.app = create_app(gateway, files.routes(gateway, self.files, self.batches), batches.routes(gateway, self.files, self.batches))

    def clock(self) -> float:
        return self.now

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        """Ends as a kill ends it: nothing is written any more."""
        task = asyncio.create_task(self._worker().run())
        before = asyncio.all_tasks()
        try:
            yield
        finally:
            task.cancel()
            for one in asyncio.all_tasks() - before:
                one.cancel()
            await asyncio.wait([task])

    def tools(self) -> Any:
        """What a worker works with."""
        return self._worker()._tools

    def _worker(self) -> Any:
        return offline_worker(self.spec, self.models, self.room, self.storage, PACE, self.clock)

    def http(self, key: str = ACME[0]) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://raybm", headers={"Authorization": f"Bearer {key}"}
        )

    def client(self, key: str = ACME[0]) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(api_key=key, base_url="http://raybm/v1", http_client=self.http(key), max_retries=0)


async def nothing_missing() -> dict[str, str]:
    return {}


def line(number: int, content: str = "", **changes: Any) -> dict[str, Any]:
    body = {"model": "chat", "messages": [{"role": "user", "content": content or f"word {number}"}]}
    return {"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": body} | changes


def jsonl(lines: list[Any]) -> bytes:
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)


async def until(condition: Callable[[], Any], timeout_s: float = 20) -> Any:
    async with asyncio.timeout(timeout_s):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.005)


async def started(client: openai.AsyncOpenAI, lines: list[Any], endpoint: Any = CHAT, **more: Any) -> str:
    file = await client.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch")
    return (await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)).id


async def ended(client: openai.AsyncOpenAI, id: str) -> Any:
    async def look() -> Any:
        batch = await client.batches.retrieve(id)
        return batch if batch.status in ("completed", "failed", "expired", "cancelled") else None

    return await until(look)


async def rows(client: openai.AsyncOpenAI, file: str | None) -> dict[str, Any]:
    """By custom_id, each of which is there once."""
    if file is None:
        return {}
    found = [json.loads(one) for one in (await client.files.content(file)).text.splitlines()]
    assert len({row["custom_id"] for row in found}) == len(found)
    return {row["custom_id"]: row for row in found}


def free_leases(storage: Storage) -> None:
    """As after the death of the process that held them: this one lives on."""
    for key in storage.keys("batches"):
        if key.endswith("lease.json"):
            storage.write(key, json.dumps({**json.loads(storage.read(key)), "holder": None}).encode())


def started_of(house: House, tenant: str, id: str) -> bool:
    return house.batches.get(tenant, id).status != "validating"

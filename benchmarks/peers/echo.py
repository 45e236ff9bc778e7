"""Words that are given back one by one: as an engine behind raybm's gateway, and behind a bare FastAPI ingress on Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from peers.shapes import answer, chunk_head, event
from ray import serve
from ray.serve.handle import DeploymentHandle

from raybm.core.signature import Signature
from raybm.engines.protocol import Delta, GenerateRequest

ROOM = 512  # requests at once, in every process: none of them is to be refused
app = FastAPI()


async def words(text: str) -> AsyncIterator[str]:
    for word in text.split():
        yield f"{word} "


class EchoEngine:
    """raybm's side (Generates)."""

    signature = Signature(problem="causal_lm", protocols=("generates",), inputs=("messages", "prompt"), outputs=("text",), max_length=4096)

    def check(self) -> None:
        """It never breaks."""

    def close(self) -> None:
        """It holds nothing."""

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Delta]:
        text = str(request.messages[-1]["content"] if request.messages else request.prompt)
        left = count = len(text.split())
        async for word in words(text):
            left -= 1
            yield Delta(word, 1, count, None if left else "stop")


class PacedEngine(EchoEngine):
    """Takes its time for an answer, and no CPU: a replica's capacity is then `max_ongoing_requests` in that time, on any machine."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Delta]:
        await asyncio.sleep(self.seconds)
        async for delta in super().generate(request):
            yield delta


@serve.deployment(max_ongoing_requests=ROOM, logging_config={"enable_access_log": False})
class Echo:
    async def complete(self, text: str) -> str:
        return "".join([word async for word in words(text)])

    async def stream(self, text: str) -> AsyncIterator[str]:
        async for word in words(text):
            yield word


@serve.deployment(max_ongoing_requests=ROOM, ray_actor_options={"num_cpus": 0.5}, logging_config={"enable_access_log": False})
@serve.ingress(app)
class Bare:
    """What a user writes who has a model on Serve and wants OpenAI's shape: no keys, no limits, no checks, no metrics of its own."""

    def __init__(self, echo: DeploymentHandle) -> None:
        self.echo, self.streaming = echo, echo.options(stream=True)

    @app.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        body = await request.json()
        text = body["messages"][-1]["content"]
        if body.get("stream"):
            return StreamingResponse(self.events(text), media_type="text/event-stream")
        return JSONResponse(answer(await self.echo.complete.remote(text)))

    async def events(self, text: str) -> AsyncIterator[bytes]:
        head = chunk_head()
        async for word in self.streaming.stream.remote(text):
            yield event(head, {"index": 0, "delta": {"content": word}, "finish_reason": None})
        yield event(head, {"index": 0, "delta": {}, "finish_reason": "stop"})
        yield b"data: [DONE]\n\n"


def bare() -> serve.Application:
    return Bare.bind(Echo.bind())

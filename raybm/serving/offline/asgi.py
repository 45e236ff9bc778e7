"""A batch's line goes through the gateway's own application, in this process: what is read, refused and answered, and how, is what a
client of the gateway would meet. Only keys and the limit of requests a minute are not asked again."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message

from raybm.serving.gateway import Gateway


class Offline(Gateway):
    """The tenant was authenticated and counted when the batch was created."""

    def admit(self, request: Request) -> None:
        pass


async def post(app: ASGIApp, path: str, body: bytes, tenant: str) -> tuple[int, bytes]:
    """Status and body of the answer. Cancelling this cancels the work."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "server": ("batches", 80),
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "state": {"tenant": tenant},
    }
    inbox: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    status, answer = 500, bytearray()

    async def receive() -> Any:
        if inbox:
            return inbox.pop()
        return await asyncio.Event().wait()  # this client never leaves

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            answer.extend(message.get("body", b""))

    await app(scope, receive, send)
    return status, bytes(answer)

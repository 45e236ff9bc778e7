"""One log line and one count a request."""

from __future__ import annotations

import logging
import re
import time
from typing import NamedTuple
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raybm.serving import statuses
from raybm.serving.logs import ACCESS
from raybm.serving.metrics import Metrics
from raybm.serving.soon import Soon

logger = logging.getLogger(ACCESS)
TOGETHER_S = 0.5
PROBES = ("/health", "/ready", "/metrics")  # asked every few seconds: not worth a line
LOGGED_PATH = 200  # characters
LOGGED_ID = re.compile(rb"[!-~]{1,128}")  # what has spaces or line ends could forge a line


class Asked(NamedTuple):
    at: float
    method: str
    path: str
    model: str
    tenant: str
    status: int
    seconds: float
    name: bytes
    """x-request-id: the client's; or Serve's, which puts either on the answer."""

    def record(self) -> logging.LogRecord:
        asked = quote(self.path, errors="replace")[:LOGGED_PATH]  # a decoded path may hold line ends
        name = self.name.decode() if LOGGED_ID.fullmatch(self.name) else "-"
        who = f"model={self.model or '-'} tenant={self.tenant or '-'}"
        line = f"{self.method} {asked} {who} status={self.status} ms={1000 * self.seconds:.1f} request={name}"
        extra = {"request_id": name}  # as Serve's own lines have it
        record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, line, (), None, extra=extra)
        record.created, record.msecs = self.at, self.at % 1 * 1000
        return record


class AccessLog:
    """When a request's last byte is out. Never its content, its key, or a header but x-request-id. The lines of half a second are made
    together: made with its request, a line took a seventh of the gateway's own time for it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self._asked: list[Asked] = []
        self._soon = Soon(TOGETHER_S, self.flush)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            self.flush()  # the process ends with its lifespan
            return
        begun, status = time.monotonic(), statuses.CLIENT_LEFT
        state = scope.setdefault("state", {})

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            if queue := state.get("queue"):
                queue.leave(answered=status < 400)
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path not in PROBES:
                seconds, model, tenant = time.monotonic() - begun, state.get("model", ""), state.get("tenant", "")
                self.metrics.request(model, tenant, status, seconds)
                name = next((value for key, value in scope["headers"] if key == b"x-request-id"), b"")
                self._asked.append(Asked(time.time(), scope["method"], path, model, tenant, status, seconds, name))
                self._soon()

    def flush(self) -> None:
        """Writes the lines that wait, each with the time of its request."""
        asked, self._asked = self._asked, []
        if logger.isEnabledFor(logging.INFO):
            for one in asked:
                logger.handle(one.record())
        for handler in logger.handlers:
            handler.flush()

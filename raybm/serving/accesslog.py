"""One log line and one count a request."""

from __future__ import annotations

import logging
import re
import time
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raybm.serving import statuses
from raybm.serving.logs import ACCESS
from raybm.serving.metrics import Metrics

logger = logging.getLogger(ACCESS)
PROBES = ("/health", "/ready", "/metrics")  # asked every few seconds: not worth a line
LOGGED_PATH = 200  # characters
LOGGED_ID = re.compile("[!-~]{1,128}")  # what has spaces or line ends could forge a line


class AccessLog:
    """When a request's last byte is out. Never its content, its key, or a header but x-request-id."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
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
            seconds, model, tenant = time.monotonic() - begun, state.get("model", ""), state.get("tenant", "")
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path not in PROBES:
                self.metrics.request(model, tenant, status, seconds)
                asked = quote(path, errors="replace")[:LOGGED_PATH]  # a decoded path may hold line ends
                named = Headers(scope=scope).get("x-request-id", "")  # the client's; or Serve's, which puts either on the answer
                name = named if LOGGED_ID.fullmatch(named) else "-"
                line = "%s %s model=%s tenant=%s status=%d ms=%.1f request=%s"
                logger.info(line, scope["method"], asked, model or "-", tenant or "-", status, seconds * 1000, name)

"""A request's way: authenticate → limit → validate → choose the model → call it, one hop away → JSON or SSE.

`Gateway.answer` is that way, top to bottom. Errors become HTTP statuses in statuses.py, and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raybm.core.errors import DeadlineExceeded, NotFound, RaybmError
from raybm.engines.protocol import Delta, Embeddings, GenerateRequest
from raybm.serving import openai, statuses
from raybm.serving.auth import Keys
from raybm.serving.limits import Limits
from raybm.serving.metrics import Metrics
from raybm.serving.replica import Answer
from raybm.serving.sse import Events, events
from raybm.serving.together import all_of, merged
from raybm.spec.serve import GatewaySpec

logger = logging.getLogger(__name__)
PROBES = ("/health", "/ready")  # asked every few seconds: not worth a line
LOGGED_PATH = 200  # characters
W = TypeVar("W", bound=openai.Wire)


class Model(Protocol):
    """One model, wherever its replicas are."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]: ...
    async def complete(self, request: GenerateRequest) -> Answer: ...
    async def embed(self, texts: Sequence[str]) -> Embeddings: ...
    async def predict(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]: ...


Missing = Callable[[], Awaitable[dict[str, str]]]
"""Models without a running replica → what they are doing."""


class Gateway:
    def __init__(self, spec: GatewaySpec, models: Mapping[str, Model], missing: Missing) -> None:
        self.spec, self.models, self.missing = spec, models, missing
        self.keys, self.limits, self.metrics = Keys(spec.api_keys), Limits(spec), Metrics()
        self.started = int(time.time())

    async def answer(self, request: Request, wire: type[W], work: Callable[[Request, Model, W], Awaitable[Response]]) -> Response:
        request.state.deadline = asyncio.get_running_loop().time() + self.spec.request_timeout_s
        try:
            async with asyncio.timeout_at(request.state.deadline):
                self.admit(request)
                query = wire.read(await self.limits.body(request))
                self.limits.inputs(query.inputs())
                model = self.choose(query.model)
                request.state.model = query.model
                return await work(request, model, query)
        except Exception as error:  # noqa: BLE001  an edge: every error becomes an answer
            return statuses.response(error)

    def admit(self, request: Request) -> None:
        request.state.tenant = self.keys.tenant(request.headers.get("authorization"))
        self.limits.admit(request.state.tenant)

    def choose(self, name: str) -> Model:
        if name not in self.models:
            raise NotFound(f"there is no model {name[:100]!r}.", remedy=f"There are: {', '.join(self.models)}.")
        return self.models[name]

    async def generate(self, request: Request, model: Model, query: openai.Generation) -> Response:
        if query.stream:
            return await self.stream(request, model, query)
        answers = await all_of([model.complete(one) for one in query.requests()])
        prompt, written = answers[0].prompt_tokens, sum(answer.completion_tokens for answer in answers)
        self.metrics.tokens(query.model, request.state.tenant, prompt, written)
        choices = [query.choice(answer.text, answer.finish_reason, index) for index, answer in enumerate(answers)]
        return JSONResponse(query.head(chunk=False) | {"choices": choices, "usage": openai.usage(prompt, written)})

    async def stream(self, request: Request, model: Model, query: openai.Generation) -> Response:
        deltas = merged([self._deltas(request, query.model, model.generate(one)) for one in query.requests()])
        first = await anext(deltas)  # what goes wrong before the first token still gets its status
        return Events(events(query, first, deltas), source=deltas)

    async def _deltas(self, request: Request, name: str, source: AsyncGenerator[Delta]) -> AsyncGenerator[Delta]:
        """The model's pieces, each before the deadline; counts them; closes the generation however this ends."""
        begun, pieces, written, delta = time.monotonic(), 0, 0, None
        try:
            while True:
                try:
                    async with asyncio.timeout_at(request.state.deadline):
                        delta = await anext(source)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise DeadlineExceeded(f"the answer was not complete within {self.spec.request_timeout_s:g} s.") from None
                if not pieces:
                    self.metrics.first_token(name, time.monotonic() - begun)
                pieces, written = pieces + 1, written + delta.tokens
                yield delta
        finally:
            if delta is not None:
                self.metrics.tokens(name, request.state.tenant, delta.prompt_tokens, written)
            await source.aclose()

    async def embed(self, request: Request, model: Model, query: openai.Embed | openai.Compare) -> Response:
        result = await model.embed(query.texts())
        self.metrics.tokens(query.model, request.state.tenant, sum(result.tokens), 0)
        return JSONResponse(query.answer(result))

    async def classify(self, request: Request, model: Model, query: openai.Classify) -> Response:
        rows = await model.predict([{"text": text} for text in query.texts()])
        self.metrics.tokens(query.model, request.state.tenant, sum(row.get("tokens", 0) for row in rows), 0)
        return JSONResponse(query.answer(rows))


def create_app(gateway: Gateway, *more: APIRouter) -> ASGIApp:
    """`more`: routes beside those of the models."""
    app = FastAPI(title="raybm", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> Response:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        """Every model has a running replica (one that may scale to zero: needs none)."""
        try:
            missing = await gateway.missing()
        except TimeoutError:
            missing = dict.fromkeys(gateway.models, "unknown: Serve's controller does not answer")
        return JSONResponse({"status": "waiting", "models": missing} if missing else {"status": "ready"}, 503 if missing else 200)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        gateway.admit(request)
        return JSONResponse(openai.models(list(gateway.models), gateway.started))

    @app.get("/v1/models/{name}")
    async def model(request: Request, name: str) -> Response:
        gateway.admit(request)
        gateway.choose(name)
        return JSONResponse(openai.model(name, gateway.started))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await gateway.answer(request, openai.Chat, gateway.generate)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await gateway.answer(request, openai.Completion, gateway.generate)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        return await gateway.answer(request, openai.Embed, gateway.embed)

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        return await gateway.answer(request, openai.Score, gateway.embed)

    @app.post("/v1/rerank")
    async def rerank(request: Request) -> Response:
        return await gateway.answer(request, openai.Rerank, gateway.embed)

    @app.post("/v1/classify")
    async def classify(request: Request) -> Response:
        return await gateway.answer(request, openai.Classify, gateway.classify)

    for router in more:
        app.include_router(router)

    async def refuse(request: Request, error: Exception) -> Response:
        response = statuses.response(error)
        if response.status_code == 405:  # of a path with several methods, Starlette names those of the first route only
            matching = [route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE]
            response.headers["Allow"] = ", ".join(sorted({method for route in matching for method in getattr(route, "methods", ())}))
        return response

    app.add_exception_handler(RaybmError, refuse)
    app.add_exception_handler(HTTPException, refuse)
    return Accounting(app, gateway.metrics)


class Accounting:
    """One log line and one count a request, when its last byte is out. Never its content, its headers or its key."""

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
            seconds, model, tenant = time.monotonic() - begun, state.get("model", ""), state.get("tenant", "")
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path not in PROBES:
                self.metrics.request(model, tenant, status, seconds)
                asked = quote(path, errors="replace")[:LOGGED_PATH]  # a decoded path may hold line ends
                line = "%s %s model=%s tenant=%s status=%d ms=%.1f"
                logger.info(line, scope["method"], asked, model or "-", tenant or "-", status, seconds * 1000)

"""The gateway's paths."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from raybm.core.errors import RaybmError
from raybm.serving import statuses, wire
from raybm.serving.accesslog import AccessLog
from raybm.serving.gateway import Gateway


def create_app(gateway: Gateway) -> ASGIApp:
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
        return JSONResponse(wire.models(list(gateway.models), gateway.started))

    @app.get("/v1/models/{name}")
    async def model(request: Request, name: str) -> Response:
        gateway.admit(request)
        gateway.choose(name)
        return JSONResponse(wire.model(name, gateway.started))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await gateway.answer(request, wire.Chat, gateway.generate)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await gateway.answer(request, wire.Completion, gateway.generate)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        return await gateway.answer(request, wire.Embed, gateway.embed)

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        return await gateway.answer(request, wire.Score, gateway.embed)

    @app.post("/v1/rerank")
    async def rerank(request: Request) -> Response:
        return await gateway.answer(request, wire.Rerank, gateway.embed)

    @app.post("/v1/classify")
    async def classify(request: Request) -> Response:
        return await gateway.answer(request, wire.Classify, gateway.classify)

    async def refuse(request: Request, error: Exception) -> Response:
        return statuses.response(error)

    app.add_exception_handler(RaybmError, refuse)
    app.add_exception_handler(HTTPException, refuse)
    return AccessLog(app, gateway.metrics)

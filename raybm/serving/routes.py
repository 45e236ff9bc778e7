"""The gateway's paths."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp

from raybm.core.errors import RaybmError
from raybm.serving import openapi, statuses, wire
from raybm.serving.accesslog import AccessLog
from raybm.serving.gateway import Gateway
from raybm.serving.reply import Reply
from raybm.serving.wire import answers


def create_app(gateway: Gateway, *more: APIRouter) -> ASGIApp:
    """`more`: routes beside those of the models."""
    app: FastAPI = FastAPIOffline(
        title="raybm", version=version("raybm"), docs_url="/docs", redoc_url=None, static_url="/docs/static", openapi_url="/openapi.json"
    )
    posts: dict[str, tuple[type[wire.Wire], type[answers.Told], Callable[..., Awaitable[Response]]]] = {
        "/v1/chat/completions": (wire.Chat, answers.ChatAnswer, gateway.generate),
        "/v1/completions": (wire.Completion, answers.CompletionAnswer, gateway.generate),
        "/v1/embeddings": (wire.Embed, answers.EmbedAnswer, gateway.embed),
        "/v1/score": (wire.Score, answers.ScoreAnswer, gateway.score),
        "/v1/rerank": (wire.Rerank, answers.RerankAnswer, gateway.score),
        "/v1/classify": (wire.Classify, answers.PredictAnswer, gateway.predict),
        "/v1/images/classify": (wire.ClassifyImages, answers.PredictAnswer, gateway.predict),
        "/tokenize": (wire.Tokenize, answers.TokenizeAnswer, gateway.tokenize),
        "/detokenize": (wire.Detokenize, answers.DetokenizeAnswer, gateway.detokenize),
    }
    asked = APIRouter(route_class=Direct)
    for path, (kind, answer, work) in posts.items():
        asked.post(path, response_model=answer, **openapi.posted(kind))(_endpoint(gateway, kind, work))
    app.include_router(asked)
    app.router.routes.sort(key=lambda route: not isinstance(route, Direct))  # a request looks at one after another: the pages come last
    _probes(app, gateway)
    _models(app, gateway)
    for router in more:
        app.include_router(router)
    app.openapi = openapi.describe(app, [kind for kind, _, _ in posts.values()], keys=bool(gateway.spec.api_keys))  # type: ignore[method-assign]

    async def refuse(request: Request, error: Exception) -> Response:
        gateway.count(request, error)
        response = statuses.response(error)
        if response.status_code == 405:  # of a path with several methods, Starlette names those of the first route only
            matching = [route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE]
            response.headers["Allow"] = ", ".join(sorted({method for route in matching for method in getattr(route, "methods", ())}))
        return response

    for told in (RaybmError, HTTPException, ClientDisconnect):
        app.add_exception_handler(told, refuse)
    return AccessLog(app, gateway.metrics)


class Direct(APIRoute):
    """A route whose endpoint takes the request as it is and makes the response: FastAPI only documents it, and has nothing to resolve."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


def _endpoint(gateway: Gateway, kind: type[wire.Wire], work: Any) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await gateway.answer(request, kind, work)

    endpoint.__name__ = kind.__name__.lower()
    return endpoint


def _probes(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/health", response_model=answers.Health)
    async def health() -> Response:
        """The process answers."""
        return Reply({"status": "ok"})

    @app.get("/ready", response_model=answers.Ready, responses={503: {"model": answers.Ready, "description": "A model has no replica."}})
    async def ready() -> Response:
        """Every model has a running replica (one that may scale to zero: needs none)."""
        try:
            missing = await gateway.missing()
        except (TimeoutError, RayError, RayServeException):
            missing = dict.fromkeys(gateway.models, "unknown: Serve's controller does not answer")
        return Reply({"status": "waiting", "models": missing} if missing else {"status": "ready"}, 503 if missing else 200)

    @app.get("/metrics", response_class=PlainTextResponse, responses=openapi.errors(401))
    async def metrics(request: Request) -> Response:
        """What this gateway process has counted, for Prometheus."""
        gateway.keys.tenant(request.headers.get("authorization"))
        return gateway.metrics.page()


def _models(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/models", response_model=answers.Models, responses=openapi.errors(401, 429))
    async def models(request: Request) -> Response:
        """The models that there are."""
        gateway.admit(request)
        return Reply(wire.models(list(gateway.models), gateway.started))

    @app.get("/v1/models/{name}", response_model=answers.Model, responses=openapi.errors(401, 404, 429))
    async def model(request: Request, name: str) -> Response:
        """One of them."""
        gateway.admit(request)
        gateway.choose(name)
        return Reply(wire.model(name, gateway.started))

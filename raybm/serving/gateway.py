"""A request's way: authenticate → limit → validate → choose the model → call it, one hop away → JSON or SSE.

`Gateway.answer` is that way, top to bottom. Errors become HTTP statuses in statuses.py, and nowhere else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from fastapi import Request
from starlette.responses import Response

from raybm.core.errors import DeadlineExceeded, NotFound
from raybm.engines.protocol import Answer, Delta, Embeddings, GenerateRequest, Scores, Tokens
from raybm.serving import resume, statuses, wire
from raybm.serving.admission import Queue, Queued
from raybm.serving.auth import Keys
from raybm.serving.cache import Cached, Kept
from raybm.serving.limits import Limits
from raybm.serving.metrics import Metrics
from raybm.serving.reply import Reply
from raybm.serving.sse import Events, events
from raybm.serving.together import Until, all_of, merged
from raybm.spec.serve import GatewaySpec, model_of

W = TypeVar("W", bound=wire.Wire)


class Model(Protocol):
    """One model, wherever its replicas are."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]: ...
    async def complete(self, request: GenerateRequest) -> Answer: ...
    async def embed(self, texts: Sequence[str]) -> Embeddings: ...
    async def score(self, query: str, texts: Sequence[str]) -> Scores: ...
    async def predict(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]: ...
    async def tokenize(self, request: GenerateRequest, special: bool) -> Tokens: ...
    async def detokenize(self, ids: Sequence[int]) -> str: ...


Missing = Callable[[], Awaitable[dict[str, str]]]
"""Models without a running replica → what they are doing."""


class Gateway:
    def __init__(
        self,
        spec: GatewaySpec,
        models: Mapping[str, Model],
        missing: Missing,
        *,
        queues: Mapping[str, Queue] | None = None,
        versions: Mapping[str, str] | None = None,
        repeating: Container[str] | None = None,
        kept: Mapping[str, Kept] | None = None,
    ) -> None:
        """`queues`: of models that may refuse for want of room; `versions`: of models, for the metrics; `repeating`: models that answer the
        same request in the same pieces again (default: all); `kept`: answers of the models that are cached."""
        self.spec, self.models, self.missing = spec, models, missing
        self.queues, self.repeating, self.kept = queues or {}, repeating, kept or {}
        self.keys, self.limits, self.metrics = Keys(spec.api_keys), Limits(spec), Metrics(versions)
        self.started = int(time.time())

    async def answer(self, request: Request, kind: type[W], work: Callable[[Request, Model, W], Awaitable[Response]]) -> Response:
        state = request.state
        try:
            self.admit(request)
            state.timeout_s = timeout_s = self.limits.timeout_s(request)
            state.deadline = deadline = asyncio.get_running_loop().time() + timeout_s
            async with asyncio.timeout_at(deadline):
                query = wire.read(kind, await self.limits.body(request))
                self.limits.inputs(query.inputs())
                model = self.model(request, query.model)
                state.model = query.model
                return await work(request, model, query)
        except Exception as error:  # noqa: BLE001  an edge: every error becomes an answer
            self.count(request, error)
            return statuses.response(error)

    def count(self, request: Request, error: Exception) -> None:
        """An error that is told to a client."""
        model, tenant = (getattr(request.state, name, "") for name in ("model", "tenant"))
        self.metrics.error(model, tenant, statuses.status(statuses.cause(error)).code)

    def admit(self, request: Request) -> None:
        self.limits.headers(request)
        request.state.tenant = tenant = self.keys.tenant(request.headers.get("authorization"))
        self.limits.admit(tenant)

    def choose(self, name: str) -> Model:
        if name not in self.models:
            raise NotFound(f"there is no model {name[:100]!r}.", remedy=f"There are: {', '.join(self.models)}.")
        return self.models[name]

    def model(self, request: Request, name: str) -> Model:
        """The one for this request: behind its queue, and that behind its cache, where it has them. Adapters share those of their model."""
        model = self.choose(name)
        if queue := self.queues.get(model_of(name)):

            def enter() -> None:
                queue.enter(request.state.deadline - asyncio.get_running_loop().time())
                request.state.queue = queue  # left when the last byte is out

            model = Queued(model, enter)
        if (kept := self.kept.get(model_of(name))) is not None:
            tenant = request.state.tenant
            model = Cached(model, kept, tenant, name, lambda: self.metrics.cached(name, tenant))
        return model

    async def generate(self, request: Request, model: Model, query: wire.Generation) -> Response:
        if query.stream:
            return await self.stream(request, model, query)
        answers = await all_of([model.complete(one) for one in query.requests()])
        prompt, written = answers[0].prompt_tokens, sum(answer.completion_tokens for answer in answers)
        self.metrics.tokens(query.model, request.state.tenant, prompt, written)
        choices = [query.choice(answer, index) for index, answer in enumerate(answers)]
        return Reply(query.head(chunk=False) | {"choices": choices, "usage": wire.usage(prompt, written)})

    async def stream(self, request: Request, model: Model, query: wire.Generation) -> Response:
        seen = resume.events_seen(request, self.repeating is None or model_of(query.model) in self.repeating)
        requests = query.requests() if seen is None else resume.repeatable(query.requests(), request)
        sources = [self._deltas(request, query.model, model.generate(one), place == 0) for place, one in enumerate(requests)]
        deltas = merged(sources)
        first = await anext(deltas)  # what goes wrong before the first token still gets its status
        told = events(query, first, deltas, lambda error: self.count(request, error))
        return Events(resume.behind(told, seen) if seen else told, deltas, request.state.deadline)

    async def _deltas(self, request: Request, name: str, source: AsyncGenerator[Delta], first: bool) -> AsyncGenerator[Delta]:
        """The model's pieces, each before the deadline; counts them, and the prompt for the `first` choice; closes the generation however
        this ends."""
        last, written, delta = time.monotonic(), 0, None
        until = Until(request.state.deadline)
        try:
            while True:
                try:
                    delta = await until.next(source)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise DeadlineExceeded(f"the answer was not complete within {request.state.timeout_s:g} s.") from None
                now = time.monotonic()
                if not written:
                    self.metrics.first_token(name, now - last)
                else:
                    self.metrics.next_tokens(name, now - last, delta.tokens)
                last, written = now, written + delta.tokens
                yield delta
        finally:
            until.close()
            if delta is not None:
                self.metrics.tokens(name, request.state.tenant, delta.prompt_tokens if first else 0, written)
            await source.aclose()

    async def embed(self, request: Request, model: Model, query: wire.Embed) -> Response:
        result = await model.embed(query.texts())
        self.metrics.tokens(query.model, request.state.tenant, sum(result.tokens), 0)
        return Reply(query.answer(result))

    async def score(self, request: Request, model: Model, query: wire.Compare) -> Response:
        result = await model.score(*query.compared())
        self.metrics.tokens(query.model, request.state.tenant, result.tokens, 0)
        return Reply(query.answer(result))

    async def predict(self, request: Request, model: Model, query: wire.Predict) -> Response:
        rows = await model.predict(query.rows())
        self.metrics.tokens(query.model, request.state.tenant, sum(row.get("tokens", 0) for row in rows), 0)
        return Reply(query.answer(rows))

    async def tokenize(self, request: Request, model: Model, query: wire.Tokenize) -> Response:
        return Reply(query.answer(await model.tokenize(query.request(), query.add_special_tokens)))

    async def detokenize(self, request: Request, model: Model, query: wire.Detokenize) -> Response:
        return Reply({"prompt": await model.detokenize(query.tokens)})

"""Spans of a request, from the client's `traceparent` (W3C Trace Context) over the gateway to the replica, by OpenTelemetry.

They go to OTEL_EXPORTER_OTLP_ENDPOINT (http://host:4318; OTLP over HTTP, extra `tracing`); where that is not set there are none.
They tell path, model, status and the wait for the replica; never a prompt, an answer, a header or a key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import NoOpTracer, Span, SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raybm.core.errors import UserError

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_HEADERS = (b"traceparent", b"tracestate")
_FORMAT = TraceContextTextMapPropagator()


def tracer(service: str) -> Tracer:
    """For one of our processes; it does nothing where no endpoint is set. Raises UserError (the extra is missing)."""
    if not os.environ.get(ENDPOINT):
        return NoOpTracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UserError(
            "is set, and there is nothing to send traces with.", where=ENDPOINT, remedy="pip install 'raybm[tracing]'."
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("raybm")


def begin(tracer: Tracer, name: str, carrier: Mapping[str, str], **attributes: Any) -> Span:
    """A span of what somebody else asks this process for; whoever begins it ends it. A carrier without a valid trace context begins
    a trace."""
    if isinstance(tracer, NoOpTracer):
        return trace.INVALID_SPAN
    return tracer.start_span(name, _FORMAT.extract(carrier), SpanKind.SERVER, attributes)


def carrier() -> dict[str, str]:
    """What another process has to be told to go on with the current span; empty where there is none."""
    carried: dict[str, str] = {}
    _FORMAT.inject(carried)
    return carried


def traced(app: ASGIApp, service: str) -> ASGIApp:
    """The app, with spans where there is an endpoint for them. Raises UserError (the extra is missing)."""
    return Traced(app, tracer(service)) if os.environ.get(ENDPOINT) else app


class Traced:
    """A span for each HTTP request, until its last byte is out."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self.app, self.tracer = app, tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _HEADERS}
        span = begin(self.tracer, scope["method"], headers, **{"http.request.method": scope["method"]})

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
            await send(message)

        try:
            # An error's text may hold what the client sent.
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                await self.app(scope, receive, watched)
                if route := getattr(scope.get("route"), "path", ""):  # a path that there is, without what stands in it
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attribute("http.route", route)
                if model := state.get("model"):
                    span.set_attribute("gen_ai.request.model", model)
        finally:
            span.end()

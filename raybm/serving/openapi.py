"""The OpenAPI document: FastAPI's, with the bodies that the gateway reads itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from raybm.serving import wire
from raybm.serving.wire import answers

Json = dict[str, Any]
STATUSES = {
    400: "The request is wrong, or not what the model can do.",
    401: "No key, or an unknown one.",
    404: "There is no such model.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    429: "The tenant's requests are used up; Retry-After says when there are more.",
    431: "The headers are too large.",
    502: "The endpoint that has the model failed.",
    503: "No room now, or no replica; Retry-After.",
    504: "Not answered within the deadline.",
}
CHUNKS: dict[type[wire.Wire], type[answers.Chunk]] = {wire.Chat: answers.ChatChunk, wire.Completion: answers.CompletionChunk}
REFERENCE = "#/components/schemas/{model}"


def errors(*statuses: int) -> dict[int | str, Json]:
    """A route's `responses`."""
    return {status: {"model": answers.Error, "description": STATUSES[status]} for status in statuses}


def posted(kind: type[wire.Wire]) -> Json:
    """What FastAPI is told of a route whose body is read by `kind`."""
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": REFERENCE.format(model=kind.__name__)}}}}
    streamed = {200: {"content": {"text/event-stream": {"schema": _event(CHUNKS[kind])}}}} if kind in CHUNKS else {}
    return {
        "responses": {**errors(*STATUSES), **streamed},
        "openapi_extra": {"requestBody": body},
        "summary": (kind.__doc__ or "").split("\n\n")[0].replace("\n    ", " "),
    }


def _event(chunk: type[answers.Chunk]) -> Json:
    """A server-sent event, for a request with `stream: true`."""
    told = [{"$ref": REFERENCE.format(model=model.__name__)} for model in (chunk, answers.Error)]
    piece = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": told}}
    return {"type": "object", "properties": {"data": {"anyOf": [piece, {"const": "[DONE]"}]}}, "required": ["data"]}


def describe(app: FastAPI, kinds: list[type[wire.Wire]], keys: bool) -> Callable[[], Json]:
    """What replaces `app.openapi`: FastAPI's document with the schemas of `kinds`. `keys`: the gateway asks for one."""
    made = app.openapi

    def openapi() -> Json:
        if app.openapi_schema is None:
            document = made()
            _, schemas = models_json_schema([(kind, "validation") for kind in (*kinds, *CHUNKS.values())], ref_template=REFERENCE)
            components = document.setdefault("components", {})
            components["schemas"] = {**components.get("schemas", {}), **schemas["$defs"]}
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    operation["responses"].pop("422", None)  # FastAPI's own, for a path's name: any text is one
                    if keys and path not in ("/health", "/ready"):
                        operation["security"] = [{"key": []}]
            for unused in ("HTTPValidationError", "ValidationError"):
                components["schemas"].pop(unused, None)
            if keys:
                components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        return dict(app.openapi_schema or {})

    return openapi

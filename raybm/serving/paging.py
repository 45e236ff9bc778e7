"""What files and batches share: what FastAPI is told of them, and lists in pages (https://platform.openai.com/docs/api-reference)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raybm.serving.offline.stored import Missing

LIMIT_MAX = 10_000  # OpenAI's; a page holds PAGE_MAX of them, and says that there is more
PAGE_MAX = 100

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is wrong."},
    401: {"description": "No key, or an unknown one."},
    404: {"description": "There is no such file or batch."},
    408: {"description": "The body came too slowly."},
    413: {"description": "The body or the file is too large."},
    429: {"description": "The tenant's requests are used up; Retry-After says when there are more."},
    431: {"description": "The headers are too large."},
    503: {"description": "Too many files are on their way, or their storage does not answer; Retry-After says when to try again."},
}
"""What the routes tell FastAPI of their errors."""


def body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A route's `openapi_extra`, where it reads the body itself."""
    return {"requestBody": {"required": True, "content": {media_type: {"schema": inlined(schema)}}}}


def query(cls: type[BaseModel]) -> dict[str, Any]:
    """A route's `openapi_extra`, where it reads its parameters itself."""
    properties = inlined(cls.model_json_schema())["properties"]
    return {"parameters": [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in properties.items()]}


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema without `$defs`, which an OpenAPI document has elsewhere."""
    defs = schema.get("$defs", {})

    def within(part: Any) -> Any:
        if isinstance(part, list):
            return [within(one) for one in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return within(defs[part["$ref"].rpartition("/")[2]])
        return {key: within(value) for key, value in part.items() if key != "$defs"}

    return dict(within(schema))


class Listed(BaseModel):
    """What `Page.take` gives."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Page(BaseModel):
    """The query of a list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX)] = PAGE_MAX
    after: str | None = None
    """The id before the first of this page."""
    order: Literal["asc", "desc"] = "desc"
    """By age."""

    def take(self, ids: Sequence[str], found: Callable[[str], dict[str, Any] | None]) -> dict[str, Any]:
        """A page of the objects that `found` gives for `ids` (the newest first); None and Missing are left out. Blocks."""
        data: list[dict[str, Any]] = []
        more = False
        for id in ids if self.order == "desc" else ids[::-1]:
            if self.after is not None and (id >= self.after if self.order == "desc" else id <= self.after):
                continue
            try:
                one = found(id)
            except Missing:
                continue
            if one is None:
                continue
            if len(data) == min(self.limit, PAGE_MAX):
                more = True
                break
            data.append(one)
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}

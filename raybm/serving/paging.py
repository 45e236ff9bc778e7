"""What files and batches share: reading parameters, and lists in pages (https://platform.openai.com/docs/api-reference)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from raybm.serving.offline.stored import Missing
from raybm.serving.openai import InvalidRequest

LIMIT_MAX = 10_000  # OpenAI's; a page holds PAGE_MAX of them, and says that there is more
PAGE_MAX = 100
M = TypeVar("M", bound=BaseModel)


def read(cls: type[M], data: dict[str, Any] | bytes) -> M:
    """Raises InvalidRequest, which never repeats a value."""
    try:
        return cls.model_validate_json(data) if isinstance(data, bytes) else cls.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "extra_forbidden":
        raise InvalidRequest("a key is not supported here.", remedy=f"There are: {', '.join(cls.model_fields)}.")
    param = str(first["loc"][0]) if first["loc"] else None
    raise InvalidRequest(f"{param or 'body'}: {first['msg']}.", param=param)


class Page(BaseModel):
    """The query of a list; other keys are ignored."""

    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX)] = PAGE_MAX
    after: str | None = None
    """The id before the first of this page."""
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = None
    """Of files."""

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

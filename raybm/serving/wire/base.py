"""What all requests share: how a body is read, and which parameters ask for nothing.

A parameter that would change the answer and that we do not implement is refused by name; one that changes nothing is accepted and
dropped.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raybm.core.errors import UserError

Json = dict[str, Any]
NAME_MAX = 100  # characters

HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
NEUTRAL: dict[str, tuple[Any, ...]] = {  # parameter → values that ask for nothing; null is neutral everywhere
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}


class InvalidRequest(UserError):
    """The body does not say what we can do."""

    def __init__(self, what: str, *, where: str = "", remedy: str = "", param: str | None = None) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.param = param
        """The first key that is wrong, where it can be repeated."""


def _without_neutral(document: Any) -> Any:
    if not isinstance(document, dict):
        return document
    return {k: v for k, v in document.items() if k not in HARMLESS and v is not None and not any(_same(v, n) for n in NEUTRAL.get(k, ()))}


def _same(value: Any, neutral: Any) -> bool:
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def _repeatable(part: str | int) -> bool:
    """Whether an answer may repeat this part of a body's path: an index, or a name of a parameter's kind."""
    return isinstance(part, int) or (part.isidentifier() and len(part) <= NAME_MAX)


class Wire(BaseModel):
    """A request's body."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str

    _drop_neutral = model_validator(mode="before")(_without_neutral)

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Raises InvalidRequest, which never repeats the request's values."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            mistakes = error.errors(include_url=False, include_context=False, include_input=False)
        texts = []
        for mistake in mistakes[:3]:
            path = ".".join(str(part) for part in mistake["loc"] if _repeatable(part) and part != "str")
            unknown = mistake["type"] == "extra_forbidden"
            what = "is not supported here; leave it out" if unknown else mistake["msg"]
            texts.append(f"{path or ('a key' if unknown else 'body')}: {what}.")
        first = mistakes[0]["loc"][:1]
        raise InvalidRequest(" ".join(texts), param=str(first[0]) if first and _repeatable(first[0]) else None)

    def inputs(self) -> int:
        """How many texts the request holds."""
        return 1


class Inputs(Wire):
    """Texts to be embedded or classified."""

    input: str | Annotated[tuple[str, ...], Field(min_length=1)]

    def texts(self) -> tuple[str, ...]:
        return (self.input,) if isinstance(self.input, str) else self.input

    def inputs(self) -> int:
        return len(self.texts())


def usage(prompt_tokens: int, completion_tokens: int | None = None) -> Json:
    counts = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + (completion_tokens or 0)}
    return counts if completion_tokens is None else {**counts, "completion_tokens": completion_tokens}

"""What all requests share: how a body is read, and which parameters ask for nothing.

A parameter that would change the answer and that we do not implement is refused by name; one that changes nothing is accepted and
dropped.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue

from raybm.core.errors import UserError

Json = dict[str, Any]
M = TypeVar("M", bound=BaseModel)
NAME_MAX = 100  # characters

HARMLESS = (
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)
NEUTRAL: dict[str, tuple[Any, ...]] = {  # parameter → values that ask for nothing; null is neutral everywhere
    "best_of": (1,),
    "echo": (False,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "suffix": ("",),
}


class InvalidRequest(UserError):
    """The body does not say what we can do."""

    def __init__(self, what: str, *, where: str = "", remedy: str = "", param: str | None = None) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.param = param
        """The first key that is wrong, where it can be repeated."""


class Part(BaseModel):
    """An object in a body. Types are held to the letter, and a null is as good as nothing."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )

    DROPPED: ClassVar[dict[str, tuple[Any, ...] | None]] = {}
    """Keys that are accepted and dropped: with these values, or (None) with any."""

    @model_validator(mode="before")
    @classmethod
    def _drop(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        return {key: value for key, value in document.items() if value is not None and not cls._asks_nothing(key, value)}

    @classmethod
    def _asks_nothing(cls, key: str, value: Any) -> bool:
        if key not in cls.DROPPED:
            return False
        neutral = cls.DROPPED[key]
        return neutral is None or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With what `_drop` accepts."""
        made = handler(core_schema)
        schema = handler.resolve_ref_schema(made)
        properties, required = schema.get("properties", {}), schema.get("required", ())
        for key, declared in properties.items():
            if key not in required and {"type": "null"} not in declared.get("anyOf", ()):
                texts = {word: declared.pop(word) for word in ("title", "description", "default") if word in declared}
                properties[key] = {**texts, "anyOf": [declared, {"type": "null"}]}
        for key, neutral in cls.DROPPED.items():
            properties[key] = {"description": "Ignored."} if neutral is None else {"enum": [*neutral, None]}
        return made


class Wire(Part):
    """A request's body."""

    DROPPED: ClassVar[dict[str, tuple[Any, ...] | None]] = {"user": None}

    model: str
    """Its name, as GET /v1/models lists them."""

    def inputs(self) -> int:
        """How many texts, rows or pictures the request holds."""
        return 1


def read(cls: type[M], document: bytes | Json) -> M:
    """Raises InvalidRequest, which never repeats the request's values."""
    try:
        return cls.model_validate_json(document) if isinstance(document, bytes) else cls.model_validate(document)
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_context=False, include_input=False)
    texts = []
    for mistake in mistakes[:3]:
        path = ".".join(str(part) for part in mistake["loc"] if _repeatable(part))
        unknown = mistake["type"] == "extra_forbidden"
        what = "is not supported here; leave it out" if unknown else mistake["msg"].removeprefix("Value error, ")
        texts.append(f"{path or ('a key' if unknown else 'body')}: {what}.")
    first = mistakes[0]["loc"][:1]
    raise InvalidRequest(" ".join(texts), param=str(first[0]) if first and _repeatable(first[0]) else None)


def _repeatable(part: str | int) -> bool:
    """Whether an answer may repeat this part of a body's path: an index, or a name of a parameter's kind; not pydantic's names of the
    types that it tried."""
    return isinstance(part, int) or (part.isidentifier() and len(part) <= NAME_MAX and part not in ("str", "dict", "int", "float"))


class Inputs(Wire):
    """Texts to be embedded."""

    input: str | Annotated[list[str], Field(min_length=1)]
    """A text, or several."""

    def texts(self) -> tuple[str, ...]:
        return (self.input,) if isinstance(self.input, str) else tuple(self.input)

    def inputs(self) -> int:
        return len(self.texts())


def usage(prompt_tokens: int, completion_tokens: int | None = None) -> Json:
    counts = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + (completion_tokens or 0)}
    return counts if completion_tokens is None else {**counts, "completion_tokens": completion_tokens}

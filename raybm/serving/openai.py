"""The wire: OpenAI's requests and answers, and ours for classification. Knows no Ray and no engine.

Source: https://platform.openai.com/docs/api-reference. A parameter that would change the answer and that we do not
implement is refused by name; one that changes nothing is accepted and dropped.
"""

from __future__ import annotations

import base64
import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from raybm.core.errors import UserError
from raybm.engines.protocol import Embeddings, FinishReason, GenerateRequest

Json = dict[str, Any]
NAME_MAX = 100  # characters
CHOICES_MAX = 16
Stop = Annotated[str, Field(min_length=1)]

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


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[tuple[TextPart, ...], Field(min_length=1)]
    name: str | None = None

    _drop_null = model_validator(mode="before")(lambda d: {k: v for k, v in d.items() if v is not None} if isinstance(d, dict) else d)

    def plain(self) -> dict[str, str]:
        """Role and text, as a chat template takes them."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: bool = False
    include_obfuscation: bool = False


class Generation(Wire, ABC):
    """What chat and plain completions share."""

    ID: ClassVar[str]
    OBJECT: ClassVar[str]
    CHUNK: ClassVar[str]

    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: PositiveInt | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=CHOICES_MAX)] = 1
    """Answers to the same prompt; those after the first have seeds that count up."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[tuple[Stop, ...], Field(max_length=16)] = ()

    @abstractmethod
    def request(self) -> GenerateRequest: ...

    def requests(self) -> tuple[GenerateRequest, ...]:
        """One a choice."""
        one = self.request()
        seeds = [None if one.seed is None else (one.seed + place + 2**63) % 2**64 - 2**63 for place in range(self.n)]
        return tuple(replace(one, seed=seed) for seed in seeds)

    @abstractmethod
    def choice(self, text: str, finish_reason: FinishReason, index: int) -> Json: ...

    @abstractmethod
    def piece(self, text: str, finish_reason: FinishReason | None, index: int) -> Json:
        """A choice of a streamed chunk."""

    def head(self, *, chunk: bool) -> Json:
        kind = self.CHUNK if chunk else self.OBJECT
        return {"id": f"{self.ID}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": self.model}

    def _stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else self.stop


class Chat(Generation):
    """POST /v1/chat/completions"""

    ID, OBJECT, CHUNK = "chatcmpl", "chat.completion", "chat.completion.chunk"

    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    max_completion_tokens: PositiveInt | None = None

    def request(self) -> GenerateRequest:
        return GenerateRequest(
            messages=tuple(message.plain() for message in self.messages),
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=self._stops(),
        )

    def choice(self, text: str, finish_reason: FinishReason, index: int) -> Json:
        return {"index": index, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": finish_reason}

    def piece(self, text: str, finish_reason: FinishReason | None, index: int) -> Json:
        delta = {"role": "assistant", "content": text} if text or not finish_reason else {}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


class Completion(Generation):
    """POST /v1/completions"""

    ID, OBJECT, CHUNK = "cmpl", "text_completion", "text_completion"
    DEFAULT_MAX_TOKENS: ClassVar[int] = 16  # OpenAI's

    prompt: str | Annotated[tuple[str, ...], Field(min_length=1, max_length=1)]
    """One prompt, or a list of one."""

    def request(self) -> GenerateRequest:
        return GenerateRequest(
            prompt=self.prompt if isinstance(self.prompt, str) else self.prompt[0],
            max_tokens=self.max_tokens or self.DEFAULT_MAX_TOKENS,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=self._stops(),
        )

    def choice(self, text: str, finish_reason: FinishReason | None, index: int) -> Json:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def piece(self, text: str, finish_reason: FinishReason | None, index: int) -> Json:
        return self.choice(text, finish_reason, index)


class Inputs(Wire):
    """Texts to be embedded or classified."""

    input: str | Annotated[tuple[str, ...], Field(min_length=1)]

    def texts(self) -> tuple[str, ...]:
        return (self.input,) if isinstance(self.input, str) else self.input

    def inputs(self) -> int:
        return len(self.texts())


class Embed(Inputs):
    """POST /v1/embeddings"""

    encoding_format: Literal["float", "base64"] = "float"

    def answer(self, result: Embeddings) -> Json:
        """base64 is of little-endian float32, as OpenAI's clients decode it."""
        if self.encoding_format == "base64":
            vectors: list[Any] = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in np.asarray(result.vectors)]
        else:
            vectors = np.asarray(result.vectors).tolist()
        data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
        return {"object": "list", "data": data, "model": self.model, "usage": usage(sum(result.tokens))}


class Compare(Wire, ABC):
    """Texts beside a text, by the cosine of their embeddings."""

    @abstractmethod
    def texts(self) -> tuple[str, ...]:
        """What is compared, then what it is compared with."""

    def inputs(self) -> int:
        return len(self.texts())

    @abstractmethod
    def answer(self, result: Embeddings) -> Json: ...

    def _scores(self, result: Embeddings) -> list[float]:
        vectors = np.asarray(result.vectors, dtype=np.float64)
        units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        scores: list[float] = (units[1:] @ units[0]).round(6).tolist()
        return scores


class Score(Compare):
    """POST /v1/score, as vLLM has it: how alike a text is to another, or to each of several."""

    text_1: str
    text_2: str | Annotated[tuple[str, ...], Field(min_length=1)]

    def texts(self) -> tuple[str, ...]:
        return (self.text_1, *((self.text_2,) if isinstance(self.text_2, str) else self.text_2))

    def answer(self, result: Embeddings) -> Json:
        data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(self._scores(result))]
        return {"object": "list", "data": data, "model": self.model, "usage": usage(sum(result.tokens))}


class Rerank(Compare):
    """POST /v1/rerank, as Jina and Cohere have it: documents in the order in which they fit a query."""

    query: str
    documents: Annotated[tuple[str, ...], Field(min_length=1)]
    top_n: PositiveInt | None = None
    return_documents: bool = True

    def texts(self) -> tuple[str, ...]:
        return (self.query, *self.documents)

    def answer(self, result: Embeddings) -> Json:
        ranked = sorted(enumerate(self._scores(result)), key=lambda found: -found[1])[: self.top_n]
        results = [
            {"index": index, "relevance_score": score} | ({"document": {"text": self.documents[index]}} if self.return_documents else {})
            for index, score in ranked
        ]
        return {"model": self.model, "results": results, "usage": usage(sum(result.tokens))}


class Classify(Inputs):
    """POST /v1/classify, ours: {model, input} → per input what the model predicts: of a classifier its label, the label's score and
    every label's score."""

    def answer(self, rows: list[Json]) -> Json:
        data = [{"index": index, **{name: value for name, value in row.items() if name != "tokens"}} for index, row in enumerate(rows)]
        return {"object": "list", "data": data, "model": self.model, "usage": usage(sum(row.get("tokens", 0) for row in rows))}


def usage(prompt_tokens: int, completion_tokens: int | None = None) -> Json:
    counts = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + (completion_tokens or 0)}
    return counts if completion_tokens is None else {**counts, "completion_tokens": completion_tokens}


def models(names: list[str], created: int) -> Json:
    return {"object": "list", "data": [model(name, created) for name in names]}


def model(name: str, created: int) -> Json:
    return {"id": name, "object": "model", "created": created, "owned_by": "raybm"}

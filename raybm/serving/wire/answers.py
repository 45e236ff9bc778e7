"""What comes back, for the OpenAPI document; the answers themselves are made beside the requests that they answer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raybm.engines.protocol import FinishReason


class Told(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), use_attribute_docstrings=True)


class ErrorDetail(Told):
    message: str
    """What is wrong, and what would be right."""
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    param: str | None
    """The key of the body that is wrong."""
    code: str | None
    """invalid_request, model_not_found, overloaded, …"""


class Error(Told):
    error: ErrorDetail


class Usage(Told):
    prompt_tokens: int
    total_tokens: int


class GenerationUsage(Usage):
    completion_tokens: int


class LikelyToken(Told):
    token: str
    logprob: float
    bytes: list[int]
    """Its UTF-8; a token may be a part of a character."""


class ChosenToken(LikelyToken):
    top_logprobs: list[LikelyToken]


class ChatLogprobs(Told):
    content: list[ChosenToken]
    refusal: None


class FunctionCall(Told):
    name: str
    arguments: str
    """JSON, as the model wrote it."""


class MadeCall(Told):
    id: str
    type: Literal["function"]
    function: FunctionCall


class AnswerMessage(Told):
    role: Literal["assistant"]
    content: str | None
    tool_calls: list[MadeCall] = []


class ChatChoice(Told):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class Generated(Told):
    id: str
    created: int
    """Unix seconds."""
    model: str
    usage: GenerationUsage


class ChatAnswer(Generated):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CallPiece(MadeCall):
    index: int
    """Calls come whole, each in one chunk."""


class MessagePiece(Told):
    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[CallPiece] = []


class ChatPiece(Told):
    index: int
    delta: MessagePiece
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class Chunk(Told):
    id: str
    created: int
    model: str
    usage: GenerationUsage | None = None
    """In the last chunk, which has no choices, where `stream_options.include_usage` asks for it."""


class ChatChunk(Chunk):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatPiece]


class CompletionLogprobs(Told):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Told):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionAnswer(Generated):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class CompletionPiece(Told):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionChunk(Chunk):
    object: Literal["text_completion"]
    choices: list[CompletionPiece]


class Rows(Told):
    object: Literal["list"]
    model: str
    usage: Usage


class Embedding(Told):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Floats, or base64 of little-endian float32."""


class EmbedAnswer(Rows):
    data: list[Embedding]


class OneScore(Told):
    object: Literal["score"]
    index: int
    score: float
    """The cosine of the embeddings; of a cross-encoder, the logistic of its number."""


class ScoreAnswer(Rows):
    data: list[OneScore]


class Document(Told):
    text: str


class Ranked(Told):
    index: int
    """Of the document in the request."""
    relevance_score: float
    document: Document | None = None


class RerankAnswer(Told):
    model: str
    results: list[Ranked]
    usage: Usage


class Prediction(Told):
    """What the model's signature says: label and scores, value, tags, answer with start and end, fills."""

    model_config = ConfigDict(extra="allow")

    index: int
    label: str | None = None
    score: float | None = None
    scores: dict[str, float | None] | list[float | None] = {}
    labels: list[str] = []
    value: float | None = None
    tags: list[str] = []
    answer: str | None = None
    start: int | None = None
    end: int | None = None
    fills: list[str] = []


class PredictAnswer(Rows):
    data: list[Prediction]


class TokenizeAnswer(Told):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(Told):
    prompt: str


class Model(Told):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(Told):
    object: Literal["list"]
    data: list[Model]


class Health(Told):
    status: Literal["ok"]


class Ready(Told):
    status: Literal["ready", "waiting"]
    models: dict[str, Any] = Field(default={})
    """Those without a running replica, and what they are doing."""

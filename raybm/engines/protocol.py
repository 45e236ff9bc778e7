"""The three things an engine may do. A replica knows one model and one engine, and no task."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from raybm.core.signature import Signature

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class GenerateRequest(NamedTuple):
    """One generation. Either `messages` (rendered with the chat template) or `prompt`."""

    messages: Sequence[Mapping[str, Any]] | None = None
    prompt: str | None = None
    max_tokens: int | None = None  # None: up to the context's end
    clip: bool = False  # fewer than max_tokens where the context ends before, instead of an error
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    drawn: bool = False  # the seed is the gateway's own, so that another replica can go on
    stop: tuple[str, ...] = ()
    written: tuple[int, ...] = ()  # the answer's tokens so far, out of the `ids` of another replica's deltas: go on behind them
    frequency_penalty: float = 0.0  # taken from a token's logit for each time that the answer has it already
    presence_penalty: float = 0.0  # taken once from the logit of each token that the answer has already
    logprobs: int | None = None  # with each token its log-probability, and those of so many likeliest ones
    schema: Mapping[str, Any] | None = None  # a JSON schema that the answer must fit
    strict: tuple[str, ...] = ()  # names of tools ("": the schema) whose schemas an endpoint is to be told to hold to the letter
    tools: Sequence[Mapping[str, Any]] = ()  # functions that the model may call: {"type": "function", "function": {"name", ...}}
    must_call: bool = False  # the answer must be a call of one of `tools`
    adapter: str | None = None  # of the engine's adapters, the one to answer through


@dataclass(frozen=True)
class Likely:
    """A token and its log-probability, as the model gave it: before temperature, penalties and schema."""

    token: str
    bytes: bytes  # a token may be a part of a character
    logprob: float


@dataclass(frozen=True)
class Chosen(Likely):
    """A token of an answer, and the likeliest ones at its place."""

    offset: int  # characters of the answer's tokens before it
    top: tuple[Likely, ...] = ()


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for, the `index`-th of its answer."""

    index: int
    name: str
    arguments: str  # JSON, as the model wrote it


class Delta(NamedTuple):
    """A piece of an answer: new text and how many tokens it took. The last one carries `finish_reason`.

    The answer can be gone on with elsewhere from the `ids` of all deltas so far: what an engine gives out is a function of the request
    and of them. `max_tokens` counts them, the text they make is not given out again, and a seeded draw comes out as it would have.
    """

    text: str
    tokens: int  # sampled since the last delta, the end-of-text token included
    prompt_tokens: int
    finish_reason: FinishReason | None = None
    ids: tuple[int, ...] = ()  # those tokens
    logprobs: tuple[Chosen, ...] = ()
    calls: tuple[ToolCall, ...] = ()


class Answer(NamedTuple):
    """A whole generation."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    logprobs: tuple[Chosen, ...] = ()
    calls: tuple[ToolCall, ...] = ()

    @classmethod
    def of(cls, deltas: Sequence[Delta]) -> Answer:
        """All deltas of a generation, put together."""
        texts, tokens, prompts, reasons, _, logprobs, calls = zip(*deltas, strict=True)
        chosen, asked = chain.from_iterable(logprobs), chain.from_iterable(calls)
        return cls("".join(texts), reasons[-1] or "stop", prompts[-1], sum(tokens), tuple(chosen), tuple(asked))


@dataclass(frozen=True)
class Tokens:
    """A text, token by token."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    context: int  # the longest input in tokens, or prompt and answer


@dataclass(frozen=True)
class Embeddings:
    vectors: np.ndarray[Any, np.dtype[np.float32]]  # (rows, width); unit length unless the model's modules.json leaves that out
    tokens: tuple[int, ...] = field(default=())  # input tokens of each row


@dataclass(frozen=True)
class Scores:
    values: tuple[float, ...]
    """Of each text, beside the one that they are compared with; more is better."""
    tokens: int


class Engine(Protocol):
    signature: Signature

    def check(self) -> None:
        """Raises RaybmError when the engine can never answer again and its process should be replaced."""

    def close(self) -> None:
        """Ends what runs, with a RaybmError for whoever waits for it, and frees the model. Calling it again does nothing."""


@runtime_checkable
class Generates(Engine, Protocol):
    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Joins the running batch. `aclose()` frees the place. The first item raises Unsupported (no chat template; what
        features.check refuses), Overloaded, UserError (neither prompt nor messages, or longer than the context; a schema that cannot be
        followed); any item raises RaybmError when the engine broke down."""


@runtime_checkable
class Embeds(Engine, Protocol):
    def embed(self, texts: Sequence[str]) -> Embeddings:
        """In order; longer texts than the signature's max_length are cut. Safe to call from several threads."""


@runtime_checkable
class Predicts(Engine, Protocol):
    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows of the signature's inputs → rows of its outputs, in order, with `tokens` where there are any: a classifier gives {"label",
        "score", "scores": {label: p}}, one of several labels {"labels", "scores"}, a regressor {"value"}, of `text` and, where a row has
        it, `text_pair`.
        Longer texts than the signature's max_length are cut. Safe from several threads. Raises UserError (a row without the inputs)."""


@runtime_checkable
class Tokenizes(Engine, Protocol):
    def tokenize(self, request: GenerateRequest, special: bool = True) -> Tokens:
        """Of a prompt or of rendered messages. `special`: with what the tokenizer puts around a prompt. Raises UserError, Unsupported.
        Safe from several threads."""

    def detokenize(self, ids: Sequence[int]) -> str:
        """Raises UserError for an id that there is none of."""


@runtime_checkable
class Relays(Generates, Embeds, Protocol):
    """An engine whose answers are made elsewhere: it is asked from the gateway's event loop, without replicas, batches and threads."""

    async def complete(self, request: GenerateRequest) -> Answer:
        """The whole answer in one piece. Cancelling it ends the work. Raises what `generate` raises."""

    async def embed_async(self, texts: Sequence[str]) -> Embeddings:
        """What `embed` gives."""

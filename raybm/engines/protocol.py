"""The three things an engine may do. A replica knows one model and one engine, and no task."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from raybm.core.signature import Signature

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class GenerateRequest:
    """One generation. Either `messages` (rendered with the chat template) or `prompt`."""

    messages: Sequence[Mapping[str, Any]] | None = None
    prompt: str | None = None
    max_tokens: int | None = None  # None: up to the context's end
    clip: bool = False  # fewer than max_tokens where the context ends before, instead of an error
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    written: tuple[int, ...] = ()  # the answer's tokens so far, out of the `ids` of another replica's deltas: go on behind them


@dataclass(frozen=True)
class Delta:
    """A piece of an answer: new text and how many tokens it took. The last one carries `finish_reason`.

    The answer can be gone on with elsewhere from the `ids` of all deltas so far: what an engine gives out is a function of the request
    and of them. `max_tokens` counts them, the text they make is not given out again, and a seeded draw comes out as it would have.
    """

    text: str
    tokens: int  # sampled since the last delta, the end-of-text token included
    prompt_tokens: int
    finish_reason: FinishReason | None = None
    ids: tuple[int, ...] = ()  # those tokens


@dataclass(frozen=True)
class Embeddings:
    vectors: np.ndarray[Any, np.dtype[np.float32]]  # (rows, width); unit length unless the model's modules.json leaves that out
    tokens: tuple[int, ...] = field(default=())  # input tokens of each row


class Engine(Protocol):
    signature: Signature

    def check(self) -> None:
        """Raises RaybmError when the engine can never answer again and its process should be replaced."""

    def close(self) -> None:
        """Ends what runs, with a RaybmError for whoever waits for it, and frees the model. Calling it again does nothing."""


@runtime_checkable
class Generates(Engine, Protocol):
    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Joins the running batch. `aclose()` frees the place. The first item raises Unsupported (no chat template), Overloaded,
        UserError (neither prompt nor messages, or longer than the context); any item raises RaybmError when the engine broke down."""


@runtime_checkable
class Embeds(Engine, Protocol):
    def embed(self, texts: Sequence[str]) -> Embeddings:
        """In order; longer texts than the signature's max_length are cut. Safe to call from several threads."""


@runtime_checkable
class Predicts(Engine, Protocol):
    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows of the signature's inputs → rows of its outputs, in order, with `tokens` where there are any: a classifier gives {"label",
        "score", "scores": {label: p}}, one of several labels {"labels", "scores"}, a regressor {"value"}.
        Longer texts than the signature's max_length are cut. Safe from several threads. Raises UserError (a row without the inputs)."""

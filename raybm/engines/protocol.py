"""The three things an engine may do. A replica knows one model and one engine, and no task."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
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
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of an answer: new text and how many tokens it took. The last one carries `finish_reason`."""

    text: str
    tokens: int
    prompt_tokens: int
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Embeddings:
    vectors: np.ndarray[Any, np.dtype[np.float32]]  # (rows, width), unit length
    tokens: tuple[int, ...] = field(default=())  # input tokens of each row


class Engine(Protocol):
    signature: Signature

    def close(self) -> None: ...


@runtime_checkable
class Generates(Engine, Protocol):
    def generate(self, request: GenerateRequest) -> AsyncIterator[Delta]:
        """Joins the running batch. Closing the iterator frees the slot. Raises Unsupported, Overloaded, UserError (context)."""


@runtime_checkable
class Embeds(Engine, Protocol):
    def embed(self, texts: Sequence[str]) -> Embeddings: ...


@runtime_checkable
class Predicts(Engine, Protocol):
    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows of the signature's inputs → rows of its outputs, in order: {"label", "score", "scores": {label: p}, "tokens"}."""

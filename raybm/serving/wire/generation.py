"""What chat and plain completions share."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt

from raybm.engines.protocol import Answer, Delta, GenerateRequest
from raybm.serving.wire.base import HARMLESS, NEUTRAL, Json, Part, Wire

CHOICES_MAX = 16
LOGPROBS_MAX = 20
Stop = Annotated[str, Field(min_length=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(Part):
    include_usage: bool = False
    """A last chunk with the tokens that were read and written."""
    include_obfuscation: bool = False
    """Ignored."""


class Generation(Wire, ABC):
    """What chat and plain completions share."""

    ID: ClassVar[str]
    OBJECT: ClassVar[str]
    CHUNK: ClassVar[str]
    DROPPED: ClassVar[dict[str, tuple[Any, ...] | None]] = {**NEUTRAL, **dict.fromkeys(HARMLESS)}

    stream: bool = False
    """Server-sent events, ended by `data: [DONE]`."""
    stream_options: StreamOptions = StreamOptions()
    max_tokens: PositiveInt | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """0 takes the likeliest token each time."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample among the likeliest tokens that hold this much of the probability."""
    n: Annotated[int, Field(ge=1, le=CHOICES_MAX)] = 1
    """Answers to the same prompt; those after the first have seeds that count up."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The same text for the same request."""
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] = []
    """Texts before which an answer ends."""
    frequency_penalty: Penalty = 0.0
    """Taken from a token's logit for each time that the answer has it already."""
    presence_penalty: Penalty = 0.0
    """Taken once from the logit of each token that the answer has already."""

    def requests(self) -> tuple[GenerateRequest, ...]:
        """One a choice."""
        one = self.request()
        if self.n == 1:
            return (one,)
        seeds = [None if one.seed is None else (one.seed + place + 2**63) % 2**64 - 2**63 for place in range(self.n)]
        return tuple(one._replace(seed=seed) for seed in seeds)

    @abstractmethod
    def request(self) -> GenerateRequest:
        """Of the first choice."""

    def sampling(self) -> dict[str, Any]:
        """A GenerateRequest's fields that both kinds have alike."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": (self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
        }

    @abstractmethod
    def choice(self, whole: Answer, index: int) -> Json:
        """A choice of an answer in one piece."""

    @abstractmethod
    def piece(self, delta: Delta, index: int, *, first: bool) -> Json:
        """A choice of a streamed chunk; `first`: its first."""

    def head(self, *, chunk: bool) -> Json:
        kind = self.CHUNK if chunk else self.OBJECT
        return {"id": f"{self.ID}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": self.model}

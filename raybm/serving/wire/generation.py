"""What chat and plain completions share."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from raybm.engines.protocol import FinishReason, GenerateRequest
from raybm.serving.wire.base import Json, Wire

CHOICES_MAX = 16
Stop = Annotated[str, Field(min_length=1)]


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

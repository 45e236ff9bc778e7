"""POST /v1/chat/completions. Source: https://platform.openai.com/docs/api-reference/chat"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from raybm.engines.protocol import FinishReason, GenerateRequest
from raybm.serving.wire.base import Json
from raybm.serving.wire.generation import Generation


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

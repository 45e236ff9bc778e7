"""POST /v1/completions. Source: https://platform.openai.com/docs/api-reference/completions"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from raybm.engines.protocol import FinishReason, GenerateRequest
from raybm.serving.wire.base import Json
from raybm.serving.wire.generation import Generation


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

"""POST /v1/completions. Source: https://platform.openai.com/docs/api-reference/completions"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from raybm.engines.protocol import Answer, Chosen, Delta, GenerateRequest
from raybm.serving.wire.base import Json
from raybm.serving.wire.generation import LOGPROBS_MAX, Generation


class Completion(Generation):
    """A text that goes on from a prompt."""

    ID, OBJECT, CHUNK = "cmpl", "text_completion", "text_completion"
    DEFAULT_MAX_TOKENS: ClassVar[int] = 16  # OpenAI's

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    """One prompt, or a list of one."""
    logprobs: Annotated[int, Field(ge=0, le=LOGPROBS_MAX)] | None = None
    """The log-probability of each token of the answer, and those of so many likeliest ones."""

    def request(self) -> GenerateRequest:
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        tokens = self.max_tokens or self.DEFAULT_MAX_TOKENS
        return GenerateRequest(prompt=prompt, max_tokens=tokens, logprobs=self.logprobs, **self.sampling())

    def choice(self, whole: Answer | Delta, index: int) -> Json:
        logprobs = None if self.logprobs is None else _logprobs(whole.logprobs)
        return {"index": index, "text": whole.text, "logprobs": logprobs, "finish_reason": whole.finish_reason}

    def piece(self, delta: Delta, index: int, *, first: bool) -> Json:
        return self.choice(delta, index)


def _logprobs(tokens: Sequence[Chosen]) -> Json:
    return {
        "tokens": [one.token for one in tokens],
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [{top.token: top.logprob for top in reversed(one.top)} for one in tokens],
        "text_offset": [one.offset for one in tokens],
    }

"""POST /tokenize and /detokenize, as vLLM has them.

Source: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html#tokenizer-api
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from raybm.engines.protocol import GenerateRequest, Tokens
from raybm.serving.wire.base import Json, Wire
from raybm.serving.wire.chat import Conversation, Tool, plain

IDS_MAX = 1_000_000
PROMPT_MAX = 262_144  # characters: a tokenizer, which reads one text after another, may take a second for so many


class Tokenize(Wire):
    """The tokens of a prompt, or of a conversation as the model's chat template renders it."""

    prompt: Annotated[str, Field(max_length=PROMPT_MAX)] | None = None
    messages: Conversation | None = None
    """Instead of a prompt."""
    tools: list[Tool] = []
    """With messages: what the template shows of functions that may be called."""
    add_special_tokens: bool = True
    """With a prompt: what the tokenizer puts around it."""
    return_token_strs: bool = False
    """The text of each token too."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either prompt or messages is needed")
        if self.tools and self.messages is None:
            raise ValueError("tools go with messages")
        return self

    def request(self) -> GenerateRequest:
        messages = None if self.messages is None else plain(self.messages)
        return GenerateRequest(messages, self.prompt, tools=tuple(tool.plain() for tool in self.tools))

    def answer(self, tokens: Tokens) -> Json:
        texts = list(tokens.texts) if self.return_token_strs else None
        return {"count": len(tokens.ids), "max_model_len": tokens.context, "tokens": list(tokens.ids), "token_strs": texts}


class Detokenize(Wire):
    """The text of tokens."""

    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=IDS_MAX)]

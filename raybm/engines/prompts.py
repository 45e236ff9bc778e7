"""From a request to the token ids that a language model reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from raybm.core.errors import TooLong, Unsupported, UserError
from raybm.engines import toolcalls
from raybm.engines.protocol import GenerateRequest

CHARACTERS_A_TOKEN = 32  # of a whole prompt, at the most: text has some 4, and a longer prompt is refused before it is tokenised


def prompt_ids(tokenizer: PreTrainedTokenizerBase, request: GenerateRequest, context: int) -> list[int]:
    """Raises UserError, TooLong, Unsupported."""
    if (request.messages is None) == (request.prompt is None):
        raise UserError("either messages or a prompt is needed.", remedy="Give one of the two.")
    characters = sum(len(str(m.get("content", ""))) for m in request.messages or ()) + len(request.prompt or "")
    if request.tools or any("tool_calls" in message for message in request.messages or ()):
        characters += len(json.dumps([request.tools, [m.get("tool_calls") for m in request.messages or ()]]))
    if characters > CHARACTERS_A_TOKEN * context:
        raise TooLong(
            f"the prompt has {characters} characters; the context holds {context} tokens.",
            where="prompt" if request.messages is None else "messages",
            remedy="Shorten it.",
        )
    if request.messages is not None:
        return _rendered(tokenizer, request.messages, request)
    ids = _unfinished(tokenizer, request.prompt or "")
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if not ids and start is not None:
        ids = [start]
    if not ids:
        raise UserError("is empty.", where="prompt", remedy="Send some text.")
    return ids


def answer_limit(prompt: int, request: GenerateRequest, context: int) -> int:
    """Tokens that an answer may have, after a prompt of so many. Raises UserError, TooLong."""
    if request.max_tokens is not None and request.max_tokens < 1:
        raise UserError(f"{request.max_tokens} is no number of tokens.", where="max_tokens", remedy="Ask for 1 or more.")
    room = context - prompt
    wanted = min(request.max_tokens or room, room) if request.clip and room > 0 else request.max_tokens
    if (wanted or 1) > room:
        raise TooLong(
            f"the prompt has {prompt} tokens and {wanted or 1} more are asked for; the context holds {context}.",
            where="max_tokens",
            remedy="Shorten the prompt or ask for fewer.",
        )
    return wanted or room


def style(tokenizer: PreTrainedTokenizerBase, request: GenerateRequest) -> toolcalls.Style | None:
    """How calls stand in the answer. A call that must be made is plain JSON, whatever the model's own way."""
    if not request.tools:
        return None
    return "json" if request.must_call else toolcalls.style(_template(tokenizer, request))


def _template(tokenizer: PreTrainedTokenizerBase, request: GenerateRequest) -> str:
    if not tokenizer.chat_template:
        raise Unsupported("this model has no chat template.", remedy="Send a prompt to /v1/completions.")
    return str(tokenizer.get_chat_template(tools=list(request.tools) or None))


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], request: GenerateRequest) -> list[int]:
    template = _template(tokenizer, request)
    tools = list(request.tools)
    if "tool_calls" not in template:
        messages = toolcalls.calls_as_text(messages)
    if tools and toolcalls.style(template) is None:
        if not request.must_call:
            what = "this model's chat template takes no tools, so it cannot choose to call one."
            raise Unsupported(what, where="tools", remedy="Set tool_choice to required or to a function, or leave tools out.")
        messages, tools = toolcalls.told_in_words(messages, tools), []
    try:
        ids = list(
            tokenizer.apply_chat_template([dict(m) for m in messages], tools=tools or None, add_generation_prompt=True, return_dict=False)
        )
    except (jinja2.TemplateError, TypeError, KeyError, IndexError) as error:
        raise UserError(f"the model's chat template refuses them: {error}.", where="messages", remedy="See the model's card.") from error
    if not ids:
        raise UserError("are empty.", where="messages", remedy="Send some text.")
    return ids


def _unfinished(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt's ids, without the end-of-text or separator that some tokenizers put behind."""
    encoded = tokenizer(prompt, return_special_tokens_mask=True)
    added = encoded.special_tokens_mask  # 0 for a special token that stands in the prompt itself
    end = next((i + 1 for i in reversed(range(len(added))) if not added[i]), 0)
    return list(encoded.input_ids[:end])

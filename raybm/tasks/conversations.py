"""Conversations as rows of ids and labels, shared by the tasks on chat models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raybm.core.errors import DataError
from raybm.models.chat import encode_conversation
from raybm.tasks.batching import IGNORED


def conversation(messages: Sequence[Mapping[str, Any]], tokenizer: Any, max_length: int, system_prompt: str | None) -> dict[str, Any]:
    """`input_ids` and `labels` (the answers'), cut at `max_length`; or the reason why not, as `_bad`."""
    try:
        ids, labels = encode_conversation(tokenizer, messages, system_prompt)
    except DataError as error:
        return {"_bad": error.what}
    if all(label == IGNORED for label in labels[1:max_length]):
        return {"_bad": f"no answer within the first {max_length} tokens"}
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def exchange(prompt: Any, answer: Any) -> list[dict[str, Any]]:
    """A question and its answer as a conversation."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]

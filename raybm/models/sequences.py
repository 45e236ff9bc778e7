"""Sources and targets of an encoder-decoder as token ids: in training and in serving the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def sources(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """What the encoder reads: at most `max_length` ids of each text, with the tokens that the tokenizer puts around, the last of them the
    end of text."""
    return [_ended(ids, tokenizer.eos_token_id, max_length) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]


def targets(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """What the decoder is to write; Marian's tokenizer has other pieces for it."""
    return [_ended(ids, tokenizer.eos_token_id, max_length) for ids in tokenizer(text_target=list(texts), verbose=False)["input_ids"]]


def _ended(ids: list[int], end: int, max_length: int) -> list[int]:
    """mBART's first tokenizers write the language behind the end."""
    last = ids[-2:] if len(ids) > 1 and ids[-2] == end else [end]
    inner = ids[: -len(last)] if ids[-len(last) :] == last else ids
    return [*inner[: max_length - len(last)], *last]

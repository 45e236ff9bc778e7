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
    inner = ids[:-1] if ids and ids[-1] == end else ids
    return [*inner[: max_length - 1], end]

"""A question beside a context, as token ids: in one sequence, or in several that overlap where the context is long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raybm.core.errors import UserError
from raybm.models.words import fast

LEAST_LENGTH = 16
LONGEST_ANSWER = 64  # tokens: longer ones are neither learnt nor given
QUESTION_SHARE = 3  # a question may take a third of a sequence
OVERLAP_SHARE = 8  # an eighth of a sequence stands in the next one too


@dataclass(frozen=True)
class Window:
    """One sequence. `inputs`: input_ids, and token_type_ids where the tokenizer gives them. `spans`: (tokens, 2) int, where in the context
    a token's characters stand; (-1, -1) for tokens that are none of the context's."""

    row: int
    inputs: dict[str, list[int]]
    spans: np.ndarray[Any, np.dtype[np.int64]]


def windows(tokenizer: Any, questions: Sequence[str], contexts: Sequence[str], max_length: int) -> list[Window]:
    """Sequences of at most `max_length` tokens that hold every context whole, each with its question, which is cut where it is too
    long. Raises UserError where there is no room for both."""
    if max_length < LEAST_LENGTH:
        what = f"{max_length} tokens are too few for a question and a context."
        raise UserError(what, where="model.max_length", remedy=f"Use {LEAST_LENGTH} or more; 384 is usual.")
    if not questions:
        return []
    fast(tokenizer)
    whole = tokenizer(list(questions), add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    room = max_length // QUESTION_SHARE
    asked = [text if len(at) <= room else text[: at[room - 1][1]] for text, at in zip(questions, whole, strict=True)]
    encoded = tokenizer(
        asked,
        list(contexts),
        truncation="only_second",
        max_length=max_length,
        stride=max_length // OVERLAP_SHARE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    made = []
    for place, row in enumerate(encoded["overflow_to_sample_mapping"]):
        spans = np.array(encoded["offset_mapping"][place], np.int64).reshape(-1, 2)
        spans[[part != 1 for part in encoded.sequence_ids(place)]] = -1
        made.append(Window(row, {name: encoded[name][place] for name in names}, spans))
    return made

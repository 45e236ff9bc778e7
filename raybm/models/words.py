"""Words that are already parted, as a tokenizer's pieces: which piece stands for which word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raybm.core.errors import Unsupported


@dataclass(frozen=True)
class Pieces:
    """Token ids of words, and the words whose first piece stands at each place; None for further pieces and special tokens."""

    row: int
    ids: list[int]
    words: list[int | None]


def pieces(tokenizer: Any, rows: Sequence[Sequence[str]], max_length: int) -> list[Pieces]:
    """Every row's words in sequences of at most `max_length` tokens, special tokens included: one, or more where they do not fit.
    A word stands in one of them, or in none where the tokenizer makes nothing of it."""
    if not rows:
        return []
    fast(tokenizer)
    blank = " " if _parts_by_blanks(tokenizer) else ""
    empty = set(tokenizer(blank, add_special_tokens=False)["input_ids"]) if blank else set()  # pieces that stand for no word
    empty.discard(tokenizer.unk_token_id)
    texts = [[f"{blank}{word}" for word in words] for words in rows]
    encoded = tokenizer(texts, is_split_into_words=True, truncation=True, max_length=max_length, return_overflowing_tokens=True)
    made: list[Pieces] = []
    seen: set[tuple[int, int]] = set()
    for place, row in enumerate(encoded["overflow_to_sample_mapping"]):
        firsts: list[int | None] = []
        for word, piece in zip(encoded.word_ids(place), encoded["input_ids"][place], strict=True):
            new = word is not None and (row, word) not in seen and piece not in empty
            firsts.append(word if new else None)
            if new:
                seen.add((row, word))
        made.append(Pieces(row, encoded["input_ids"][place], firsts))
    return made


def fast(tokenizer: Any) -> None:
    """Raises Unsupported for a tokenizer that does not say where its pieces stand."""
    if not tokenizer.is_fast:
        what = f"{type(tokenizer).__name__} does not say where its pieces stand."
        raise Unsupported(what, where="model.tokenizer", remedy="Use a model whose tokenizer is a fast one (tokenizer.json).")


def _parts_by_blanks(tokenizer: Any) -> bool:
    """Whether a word has other pieces behind a blank, as in a text, than by itself (RoBERTa, GPT-2)."""
    return bool(tokenizer.tokenize("a") != tokenizer.tokenize(" a"))

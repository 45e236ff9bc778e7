"""The tokens of a model as bytes, and which of them may come next in an answer that must fit a JSON schema (llguidance)."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from raybm.core.errors import Unsupported, UserError

# One line, spaced as models write it: with free white space a small model may write nothing else.
SPACING: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Vocabulary:
    """Made at its first use: reading the tokenizer takes some 0.4 s."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
        self._tokenizer, self._ends = tokenizer, sorted(ends)
        self._made: LLTokenizer | None = None
        self._making = threading.Lock()

    def bytes_of(self, token: int) -> bytes:
        return bytes(self._read().decode_bytes([token]))

    def constraint(self, schema: Mapping[str, Any], where: str) -> Constraint:
        """Raises UserError for a schema that cannot be followed, Unsupported."""
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema, allow_nan=False), overrides=SPACING)
        except (ValueError, RecursionError) as error:
            raise UserError(f"is no JSON schema: {error}.", where=where, remedy="Numbers must be finite, and nesting shallow.") from None
        matcher = LLMatcher(self._read(), grammar, log_level=0)
        if matcher.is_error():
            what = matcher.get_error().strip().splitlines()[0]
            raise UserError(f"this schema cannot be followed: {what}.", where=where, remedy="Simplify it.")
        return Constraint(matcher, where)

    def _read(self) -> LLTokenizer:
        with self._making:
            if self._made is None:
                if not isinstance(self._tokenizer, PreTrainedTokenizerFast) or not self._ends:
                    raise Unsupported(
                        "this model's tokenizer cannot be read token by token.", remedy="Ask for neither logprobs nor a schema."
                    )
                self._made = from_tokenizer(self._tokenizer, eos_token=self._ends)
            return self._made


class Constraint:
    """What may follow in one answer. A schema that turns out to be too complicated allows anything from then on, and `error` says why."""

    def __init__(self, matcher: LLMatcher, where: str) -> None:
        self._matcher, self._where = matcher, where

    def allowed(self, width: int) -> torch.Tensor:
        """For each token of a vocabulary of this width, whether it may come next."""
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        mask = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten()[:width].bool()
        if self._matcher.is_error() or not mask.any():
            return torch.ones(width, dtype=torch.bool)
        return torch.nn.functional.pad(mask, (0, width - len(mask)))

    def took(self, token: int) -> None:
        self._matcher.consume_token(token)

    def error(self) -> UserError | None:
        if not self._matcher.is_error():
            return None
        what = self._matcher.get_error().strip().splitlines()[0]
        return UserError(f"this schema cannot be followed further: {what}.", where=self._where, remedy="Simplify it.")

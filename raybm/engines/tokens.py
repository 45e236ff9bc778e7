"""Token ids for those who ask for them (Tokenizes)."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from raybm.core.errors import UserError
from raybm.engines.protocol import Tokens


def as_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], context: int) -> Tokens:
    return Tokens(tuple(ids), tuple(tokenizer.convert_ids_to_tokens(list(ids))), context)


def as_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Special tokens included. Raises UserError."""
    if wrong := [token for token in ids if not 0 <= token < len(tokenizer)]:
        raise UserError(f"there is no token {wrong[0]}.", where="tokens", remedy=f"The last is {len(tokenizer) - 1}.")
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

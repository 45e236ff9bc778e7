"""Token classification: a tag for each token of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybm.core.errors import UserError
from raybm.core.signature import Signature
from raybm.engines.encoders.encoding import Encoder
from raybm.models.words import pieces

OUTSIDE = "O"


class Tagger(Encoder):
    """Tags of tokens (Predicts). Rows that are longer than the model takes are read in parts; a token of which the tokenizer makes
    nothing gets O."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, signature: Signature, max_batch: int) -> None:
        super().__init__(model, tokenizer, signature, max_batch)
        self.labels = signature.labels or tuple(str(model.config.id2label[i]) for i in range(model.config.num_labels))

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        self.check()
        tokens = [_tokens(row, i) for i, row in enumerate(rows)]
        with self.tokenizing:
            parts = [part for part in pieces(self.tokenizer, tokens, self.signature.max_length) if part.ids]
        answers: list[dict[str, Any]] = [{"tags": [OUTSIDE] * len(words), "tokens": 0} for words in tokens]
        for places, inputs in self.padded([{"input_ids": part.ids} for part in parts]):
            with torch.inference_mode():
                best = self.model(**inputs).logits.argmax(-1).tolist()
            for place, said in zip(places, best, strict=True):
                part = parts[place]
                answers[part.row]["tokens"] += len(part.ids)
                for word, label in zip(part.words, said, strict=False):  # beyond the part's pieces stands padding
                    if word is not None:
                        answers[part.row]["tags"][word] = self.labels[label]
        return answers


def _tokens(row: Mapping[str, Any], number: int) -> list[str]:
    tokens = row.get("tokens")
    if not isinstance(tokens, list | tuple) or not all(isinstance(token, str) for token in tokens):
        raise UserError(f"row {number} has no list of strings.", where="tokens", remedy='Give each row its tokens, as in ["Ada", "spoke"].')
    return list(tokens)

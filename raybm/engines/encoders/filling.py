"""Masked language models: what stands behind the mask tokens of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from raybm.engines.encoders.encoding import Encoder, text_of


class Filler(Encoder):
    """Likeliest words for the mask tokens in a text, such as [MASK] (Predicts)."""

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """`fills`: for each mask token in the text, in order, the likeliest token; `scores`: its probability. Both are empty for a text
        without a mask token."""
        answers: dict[int, dict[str, Any]] = {}
        for places, inputs in self._batches([text_of(row, i) for i, row in enumerate(rows)]):
            with torch.inference_mode():
                logits = self.model(**inputs).logits
            lengths = inputs["attention_mask"].sum(1).tolist()
            for place, ids, row, tokens in zip(places, inputs["input_ids"], logits, lengths, strict=True):
                shares, fills = torch.softmax(row[ids == self.tokenizer.mask_token_id].float(), dim=-1).max(-1)
                words = [self.tokenizer.decode([fill]).strip() for fill in fills.tolist()]
                answers[place] = {"fills": words, "scores": shares.tolist(), "tokens": tokens}
        return [answers[i] for i in range(len(rows))]

"""Masked language modelling: cross-entropy of hidden tokens. What is hidden is drawn anew in every batch of the training, and always
the same in an evaluation."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

from raybm.core.errors import Unsupported
from raybm.core.signature import Signature
from raybm.models.tokenizers import config_fields
from raybm.models.words import fast
from raybm.tasks.batching import IGNORED, pad, summed_cross_entropy, training_only
from raybm.tasks.masked_lm.spec import MaskedLm
from raybm.tasks.protocol import Batch, LossSum, Row, Task

MASKED, REPLACED = 0.8, 0.1  # of what is to be predicted; the rest stays as it is

Ids = np.ndarray[Any, np.dtype[np.int64]]


class MaskedLmTask(Task):
    def __init__(self, spec: MaskedLm) -> None:
        self.spec = spec

    def encode(self, rows: Sequence[Row], processor: Any, labels: Sequence[str], max_length: int) -> list[dict[str, Any]]:
        """The pieces of a text end to end, and where each ends."""
        if processor.mask_token_id is None:
            remedy = "Take a model that was trained with one, or `tokenizer: {train: wordpiece}`."
            raise Unsupported("the tokenizer has no mask token.", where="model.tokenizer", remedy=remedy)
        if not rows:
            return []
        fast(processor)
        encoded = processor([row["text"] for row in rows], truncation=True, max_length=max_length, return_overflowing_tokens=True)
        special = set(processor.all_special_ids)
        made: list[dict[str, Any]] = [{"input_ids": [], "ends": []} for _ in rows]
        for row, ids in zip(encoded["overflow_to_sample_mapping"], encoded["input_ids"], strict=True):
            if not special.issuperset(ids):
                made[row]["input_ids"] += ids
                made[row]["ends"].append(len(made[row]["input_ids"]))
        return [row if row["ends"] else {"_bad": "nothing in it that could be masked"} for row in made]

    def pack(self, rows: Sequence[dict[str, Any]], max_length: int) -> list[dict[str, Any]]:
        """Each piece by itself."""
        return [{"input_ids": row["input_ids"][start:end]} for row in rows for start, end in pairwise([0, *row["ends"]])]

    def model(self, folder: Path | None, config: Mapping[str, Any], labels: Sequence[str], processor: Any) -> PreTrainedModel:
        if folder is not None:
            return AutoModelForMaskedLM.from_pretrained(folder, **config, dtype=torch.float32, use_safetensors=True)
        settings = {**config_fields(processor), **config}
        return AutoModelForMaskedLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)

    def collate(self, rows: Sequence[Row], processor: Any, seed: int | None = None) -> Batch:
        special = np.array(sorted(processor.all_special_ids), np.int64)
        drawn = [self._masked(np.array(row["input_ids"], np.int64), processor, special, seed) for row in rows]
        drawn = drawn or [(np.array([processor.pad_token_id or 0]), np.array([IGNORED]))]
        ids, mask = pad([shown for shown, _ in drawn], processor.pad_token_id or 0)
        labels, _ = pad([hidden for _, hidden in drawn], IGNORED)
        places = (labels.flatten() != IGNORED).nonzero()[:, 0]  # found here: a GPU would have to be waited for
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "places": places}

    def _masked(self, ids: Ids, processor: Any, special: Ids, seed: int | None) -> tuple[Ids, Ids]:
        """What the model is shown, and the hidden tokens at their places. Drawn by the row and the seed, whatever else is in the batch."""
        random = np.random.default_rng([seed or 0, zlib.crc32(ids.tobytes())])
        places = np.flatnonzero(~np.isin(ids, special))
        chosen = random.choice(places, max(1, round(self.spec.mask_share * len(places))), replace=False)
        shown, hidden = ids.copy(), np.full_like(ids, IGNORED)
        hidden[chosen] = ids[chosen]
        fate = random.random(len(chosen))
        shown[chosen[fate < MASKED]] = processor.mask_token_id
        replaced = chosen[(fate >= MASKED) & (fate < MASKED + REPLACED)]
        shown[replaced] = random.integers(len(processor), size=len(replaced))
        return shown, hidden

    def units(self, batch: Batch) -> torch.Tensor:
        return (batch["labels"] != IGNORED).sum()

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossSum:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.flatten(0, 1)
        places = batch["places"]
        smoothed = training_only(model, self.spec.label_smoothing)
        return summed_cross_entropy(logits[places], batch["labels"].flatten()[places], smoothed)

    def signature(self, labels: Sequence[str], max_length: int) -> Signature:
        return Signature(problem="masked_lm", protocols=("predicts",), inputs=("text",), outputs=("fills", "scores"), max_length=max_length)

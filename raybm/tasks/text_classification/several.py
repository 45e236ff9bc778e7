"""Multi-label text classification: a yes or no to each label, binary cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from raybm.core.signature import Signature
from raybm.tasks.baselines import linear_text_tagger
from raybm.tasks.batching import pad
from raybm.tasks.classification import averages
from raybm.tasks.protocol import Batch, LossSum, Row
from raybm.tasks.text_classification.task import TextClassificationTask


class MultiLabelTask(TextClassificationTask):
    def encode(self, rows: Sequence[Row], processor: Any, labels: Sequence[str], max_length: int) -> list[dict[str, Any]]:
        """`wanted`: a 1 or a 0 for each label."""
        encoded = processor([row["text"] for row in rows], truncation=True, max_length=max_length)["input_ids"] if rows else []
        made: list[dict[str, Any]] = []
        for ids, row in zip(encoded, rows, strict=True):
            if unknown := [label for label in row["labels"] if label not in labels]:
                made.append({"_bad": f"label {unknown[0]!r} is none of {', '.join(labels)}"})
            else:
                made.append({"input_ids": ids, "wanted": [int(label in row["labels"]) for label in labels]})
        return made

    def model(self, folder: Path | None, config: Mapping[str, Any], labels: Sequence[str], processor: Any) -> PreTrainedModel:
        model = super().model(folder, {**config, "problem_type": "multi_label_classification"}, labels, processor)
        heads = [part for part in model.modules() if isinstance(part, torch.nn.Linear) and part.out_features == len(labels)]
        if heads and heads[-1].bias is not None:
            _say_no(heads[-1].bias, len(labels))
        return model

    def collate(self, rows: Sequence[Row], processor: Any, seed: int | None = None) -> Batch:
        ids, mask = pad([row["input_ids"] for row in rows] or [[processor.pad_token_id or 0]], processor.pad_token_id or 0)
        wanted = torch.tensor(np.array([row["wanted"] for row in rows] or [[0]]), dtype=torch.float32)
        return {"input_ids": ids, "attention_mask": mask, "wanted": wanted, "counts": torch.full((len(ids),), float(bool(rows)))}

    def units(self, batch: Batch) -> torch.Tensor:
        return batch["counts"].sum().long()

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossSum:
        """Summed over the labels and over the rows. `correct`: rows of which every label is right."""
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        wanted, counts = batch["wanted"].expand_as(logits), batch["counts"]
        each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(1)
        right = ((logits.detach() >= 0) == (wanted == 1)).all(1)
        return LossSum((each * counts).sum(), (right * counts).sum())

    def baseline(self, train: Sequence[Row], labels: Sequence[str], seed: int) -> Callable[[Sequence[Row]], list[dict[str, Any]]] | None:
        tag = linear_text_tagger([row["text"] for row in train], [row["labels"] for row in train], labels, seed)
        return lambda rows: [{"labels": said} for said in tag([row["text"] for row in rows])]

    def score(self, predictions: Sequence[Row], rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        truth, said = (
            np.array([[label in row["labels"] for label in labels] for row in found], dtype=int) for found in (rows, predictions)
        )
        return {"rows": len(rows), "subset_accuracy": float((truth == said).all(1).mean()), **averages(truth, said, labels)}

    def signature(self, labels: Sequence[str], max_length: int) -> Signature:
        return super().signature(labels, max_length).model_copy(update={"outputs": ("labels", "scores")})


def _say_no(bias: torch.nn.Parameter, labels: int) -> None:
    """Let a new head begin with one label in so many, as rare labels are (Lin et al. 2017, arXiv:1708.02002, 4.1): from even odds the
    encoder would first learn to say no to everything, and lose what tells texts apart. A bias that is not zero has been trained."""
    gathered: AbstractContextManager[Any] = nullcontext()
    if hasattr(bias, "ds_id"):
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters([bias], modifier_rank=0)
    with gathered, torch.no_grad():
        if bias.numel() and not bias.any():
            bias.fill_(-math.log(max(labels - 1, 1)))

"""Text classification: an encoder with a linear head, cross-entropy, one label a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from raybm.core.signature import Signature
from raybm.models import own
from raybm.tasks.baselines import linear_text_classifier
from raybm.tasks.batching import IGNORED, pad, summed_cross_entropy, training_only
from raybm.tasks.classification import head_config, label_set, pretrained, scores
from raybm.tasks.protocol import Ask, Batch, LossSum, Row, Task
from raybm.tasks.text_classification.spec import TextClassification


class TextClassificationTask(Task):
    def __init__(self, spec: TextClassification) -> None:
        self.spec = spec

    def labels(self, seen: Sequence[str]) -> tuple[str, ...]:
        return label_set(self.spec.labels, seen)

    def encode(self, rows: Sequence[Row], processor: Any, labels: Sequence[str], max_length: int) -> list[dict[str, Any]]:
        if not rows:
            return []
        index = {label: i for i, label in enumerate(labels)}
        encoded = processor([row["text"] for row in rows], truncation=True, max_length=max_length)["input_ids"]
        return [
            {"input_ids": ids, "labels": [index[row["label"]]]}
            if row["label"] in index
            else {"_bad": f"label {row['label']!r} is none of {', '.join(labels)}"}
            for ids, row in zip(encoded, rows, strict=True)
        ]

    def model(self, folder: Path | None, config: Mapping[str, Any], labels: Sequence[str], processor: Any) -> PreTrainedModel:
        own.register()
        if folder is not None:
            return pretrained(AutoModelForSequenceClassification, folder, config, labels, processor)
        settings = {"vocab_size": len(processor), "pad_token_id": processor.pad_token_id, **head_config(labels), **config}
        return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)

    def collate(self, rows: Sequence[Row], processor: Any, seed: int | None = None) -> Batch:
        filled = rows or [{"input_ids": [processor.pad_token_id or 0], "labels": [IGNORED]}]
        ids, mask = pad([row["input_ids"] for row in filled], processor.pad_token_id or 0)
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([int(row["labels"][0]) for row in filled])}

    def units(self, batch: Batch) -> torch.Tensor:
        return (batch["labels"] != IGNORED).sum()

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossSum:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return summed_cross_entropy(logits, batch["labels"], training_only(model, self.spec.label_smoothing))

    def predict(self, rows: Sequence[Row], ask: Ask) -> list[dict[str, Any]]:
        return ask([{"text": row["text"]} for row in rows])

    def baseline(self, train: Sequence[Row], labels: Sequence[str], seed: int) -> Callable[[Sequence[Row]], list[dict[str, Any]]] | None:
        model = linear_text_classifier([row["text"] for row in train], [row["label"] for row in train], seed)
        return lambda rows: [{"label": label} for label in model.predict([row["text"] for row in rows])]

    def score(self, predictions: Sequence[Row], rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        return scores(predictions, rows, labels)

    def signature(self, labels: Sequence[str], max_length: int) -> Signature:
        return Signature(
            problem="text_classification",
            protocols=("predicts",),
            inputs=("text",),
            outputs=("label", "score", "scores"),
            labels=tuple(labels),
            max_length=max_length,
        )

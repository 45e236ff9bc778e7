"""Text classification: an encoder with a linear head, cross-entropy, one label a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from raybm.core.errors import DataError
from raybm.core.signature import Signature
from raybm.tasks.baselines import linear_text_classifier
from raybm.tasks.batching import IGNORED, pad
from raybm.tasks.protocol import Ask, Batch, LossSum, Row, Task
from raybm.tasks.text_classification.spec import TextClassification


class TextClassificationTask(Task):
    def __init__(self, spec: TextClassification) -> None:
        self.spec = spec

    def labels(self, seen: Sequence[str]) -> tuple[str, ...]:
        labels = self.spec.labels or tuple(sorted(seen))
        if len(labels) < 2:
            what = f"the training split holds {len(labels)} label(s): {', '.join(labels)}."
            raise DataError(what, where="task", remedy="A classifier needs two or more.")
        return labels

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
        names = dict(enumerate(labels))
        head = {"num_labels": len(labels), "id2label": names, "label2id": {label: i for i, label in names.items()}}
        if folder is not None:
            return AutoModelForSequenceClassification.from_pretrained(folder, **config, **head, dtype=torch.float32, use_safetensors=True)
        settings = {"vocab_size": len(processor), "pad_token_id": processor.pad_token_id, **config, **head}
        return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)

    def collate(self, rows: Sequence[Row], processor: Any, seed: int | None = None) -> Batch:
        filled = rows or [{"input_ids": [processor.pad_token_id], "labels": [IGNORED]}]
        ids, mask = pad([row["input_ids"] for row in filled], processor.pad_token_id or 0)
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([int(row["labels"][0]) for row in filled])}

    def units(self, batch: Batch) -> torch.Tensor:
        return (batch["labels"] != IGNORED).sum()

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossSum:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        labels = batch["labels"]
        total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return LossSum(total, (logits.detach().argmax(-1) == labels).sum())

    def predict(self, rows: Sequence[Row], ask: Ask) -> list[dict[str, Any]]:
        return ask([{"text": row["text"]} for row in rows])

    def baseline(self, train: Sequence[Row], labels: Sequence[str], seed: int) -> Callable[[Sequence[Row]], list[dict[str, Any]]] | None:
        model = linear_text_classifier([row["text"] for row in train], [row["label"] for row in train], seed)
        return lambda rows: [{"label": label} for label in model.predict([row["text"] for row in rows])]

    def score(self, predictions: Sequence[Row], rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        truth, said = [row["label"] for row in rows], [prediction["label"] for prediction in predictions]
        scores: dict[str, Any] = {"rows": len(truth), "accuracy": float(accuracy_score(truth, said))}
        for average in ("micro", "macro"):
            precision, recall, f1, _ = precision_recall_fscore_support(truth, said, labels=list(labels), average=average, zero_division=0)
            scores |= {f"{average}_precision": float(precision), f"{average}_recall": float(recall), f"{average}_f1": float(f1)}
        each = np.stack(precision_recall_fscore_support(truth, said, labels=list(labels), average=None, zero_division=0), axis=1)
        scores["per_class"] = {
            label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for label, (p, r, f, n) in zip(labels, each, strict=True)
        }
        scores["labels"] = list(labels)
        scores["confusion"] = confusion_matrix(truth, said, labels=list(labels)).tolist()  # rows: truth, columns: prediction
        return scores

    def signature(self, labels: Sequence[str], max_length: int) -> Signature:
        return Signature(
            problem="text_classification",
            protocols=("predicts",),
            inputs=("text",),
            outputs=("label", "score", "scores"),
            labels=tuple(labels),
            max_length=max_length,
        )

"""Image classification: any of transformers' classifiers of pictures, or a small convolutional network of our own; cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel

from raybm.core.errors import UserError
from raybm.core.signature import Signature
from raybm.models import dataurl, own
from raybm.tasks.baselines import small_pixels
from raybm.tasks.batching import IGNORED, training_only
from raybm.tasks.classification import head_config, label_set, pretrained, scores
from raybm.tasks.image_classification.augment import augment, mix
from raybm.tasks.image_classification.spec import ImageClassification
from raybm.tasks.protocol import Ask, Batch, LossSum, Row, Task

LEAST = 2  # pictures in a batch: a batch norm over one value a channel has no variance


class ImageClassificationTask(Task):
    def __init__(self, spec: ImageClassification) -> None:
        self.spec = spec

    def labels(self, seen: Sequence[str]) -> tuple[str, ...]:
        return label_set(self.spec.labels, seen)

    def encode(self, rows: Sequence[Row], processor: Any, labels: Sequence[str], max_length: int) -> list[dict[str, Any]]:
        """`image` keeps the file's bytes, which are far fewer than its pixels; each is decoded once, to be sure that it can be."""
        index = {label: i for i, label in enumerate(labels)}
        encoded: list[dict[str, Any]] = []
        for row in rows:
            try:
                data = dataurl.decode(row["image"])
                processor.pixels([data])
            except UserError as error:
                encoded.append({"_bad": f"image {error.what}"})
                continue
            known = row["label"] in index
            bad = {"_bad": f"label {row['label']!r} is none of {', '.join(labels)}"}
            encoded.append({"image": np.frombuffer(data, np.uint8), "labels": [index[row["label"]]]} if known else bad)
        return encoded

    def model(self, folder: Path | None, config: Mapping[str, Any], labels: Sequence[str], processor: Any) -> PreTrainedModel:
        own.register()
        if folder is not None:
            return pretrained(AutoModelForImageClassification, folder, config, labels)
        side = processor.height if processor.height == processor.width else [processor.height, processor.width]
        settings = {"image_size": side, "num_channels": processor.channels, **head_config(labels), **config}
        return AutoModelForImageClassification.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)

    def collate(self, rows: Sequence[Row], processor: Any, seed: int | None = None) -> Batch:
        files = [np.asarray(row["image"], np.uint8).tobytes() for row in rows]
        labels = torch.tensor([int(row["labels"][0]) for row in rows], dtype=torch.int64)
        pixels = torch.from_numpy(processor.pixels(files)).float() / 255
        batch: Batch = {}
        if seed is not None:
            random = np.random.default_rng(seed)
            pixels = augment(pixels, self.spec.augment, random)
            if self.spec.augment.mixup and len(rows):
                pixels, others, share = mix(pixels, self.spec.augment.mixup, random)
                batch = {"other_labels": labels[others], "share": torch.tensor(share)}
        blank = max(0, LEAST - len(rows))
        batch |= {"labels": labels, "pixel_values": F.pad(processor.normalised(pixels), (0, 0, 0, 0, 0, 0, 0, blank))}
        return {name: F.pad(tensor, (0, blank), value=IGNORED) if "labels" in name else tensor for name, tensor in batch.items()}

    def units(self, batch: Batch) -> torch.Tensor:
        return (batch["labels"] != IGNORED).sum()

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossSum:
        pixels, labels = batch["pixel_values"], batch["labels"]
        logits = model(pixel_values=pixels.to(next(model.parameters()).dtype)).logits.float()
        smoothing = training_only(model, self.spec.label_smoothing)

        def total(truth: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(logits, truth, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)

        summed = total(labels)
        if "share" in batch:
            summed = batch["share"] * summed + (1 - batch["share"]) * total(batch["other_labels"])
        return LossSum(summed, (logits.detach().argmax(-1) == labels).sum())

    def predict(self, rows: Sequence[Row], ask: Ask) -> list[dict[str, Any]]:
        return ask([{"image": row["image"]} for row in rows])

    def baseline(self, train: Sequence[Row], labels: Sequence[str], seed: int) -> Callable[[Sequence[Row]], list[dict[str, Any]]] | None:
        """Logistic regression over the pixels."""
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(max_iter=200, tol=1e-3).fit(
            small_pixels([row["image"] for row in train]), [row["label"] for row in train]
        )
        return lambda rows: [{"label": str(label)} for label in model.predict(small_pixels([row["image"] for row in rows]))]

    def score(self, predictions: Sequence[Row], rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        return scores(predictions, rows, labels)

    def signature(self, labels: Sequence[str], max_length: int) -> Signature:
        return Signature(
            problem="image_classification",
            protocols=("predicts",),
            inputs=("image",),
            outputs=("label", "score", "scores"),
            labels=tuple(labels),
            max_length=max_length,
        )

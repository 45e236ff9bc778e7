"""Image and text: CLIP's two towers, contrasted within the batch; scored by finding each other among all of the split's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, PreTrainedModel

from raybm.core.errors import Unsupported, UserError
from raybm.core.signature import Signature
from raybm.models import dataurl
from raybm.tasks.baselines import small_pixels
from raybm.tasks.batching import IGNORED, pad
from raybm.tasks.image_text.spec import ImageText
from raybm.tasks.protocol import Ask, Batch, LossSum, Row, Task

AT = (1, 5)  # places among which the right one is looked for
AT_ONCE = 1000  # queries whose similarities are held together
WORDS = {"token_pattern": r"\S+"}  # whatever stands between spaces
BASELINE_WIDTH = 128  # of its vectors

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class ImageTextTask(Task):
    def __init__(self, spec: ImageText) -> None:
        self.spec = spec

    def encode(self, rows: Sequence[Row], processor: Any, labels: Sequence[str], max_length: int) -> list[dict[str, Any]]:
        """`image` keeps the file's bytes; each is decoded once, to be sure that it can be."""
        ids = processor.ids([row["text"] for row in rows], max_length)
        encoded: list[dict[str, Any]] = []
        for row, tokens in zip(rows, ids, strict=True):
            try:
                data = dataurl.decode(row["image"])
                processor.images.pixels([data])
            except UserError as error:
                encoded.append({"_bad": f"image {error.what}"})
            else:
                encoded.append({"image": np.frombuffer(data, np.uint8), "input_ids": tokens})
        return encoded

    def model(self, folder: Path | None, config: Mapping[str, Any], labels: Sequence[str], processor: Any) -> PreTrainedModel:
        if folder is not None:
            model = AutoModel.from_pretrained(folder, **config, dtype=torch.float32, use_safetensors=True)
        else:
            tokenizer, images = processor.tokenizer, processor.images
            special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
            text = {"vocab_size": len(tokenizer), **special, **_part(config, "text_config")}
            vision = {"image_size": images.height, "num_channels": images.channels, **_part(config, "vision_config")}
            settings = {**config, "text_config": text, "vision_config": vision}
            model = AutoModel.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
        if not hasattr(model, "get_image_features") or not hasattr(model.config, "projection_dim"):
            what = f"{type(model).__name__} has no vectors of pictures and texts as CLIP has them."
            raise Unsupported(what, where="model.ref", remedy="Use a CLIP, such as scratch:clip.")
        if processor.tokenizer.eos_token_id is None:
            raise Unsupported("the tokenizer has no end of text.", where="model.ref", remedy="Use a CLIP, such as scratch:clip.")
        return model

    def collate(self, rows: Sequence[Row], processor: Any, seed: int | None = None) -> Batch:
        end = processor.tokenizer.eos_token_id
        ids, mask = pad([row["input_ids"] for row in rows] or [[end]], end)
        files = [np.asarray(row["image"], np.uint8).tobytes() for row in rows]
        numbers = {file: number for number, file in enumerate(files)}
        pixels = processor.images(files)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "pixel_values": pixels if rows else pixels.new_zeros((1, *pixels.shape[1:])),
            "pictures": torch.tensor([numbers[file] for file in files] or [0]),  # equal ones have the same number
            "labels": torch.arange(len(rows)) if rows else torch.tensor([IGNORED]),
        }

    def units(self, batch: Batch) -> torch.Tensor:
        return (batch["labels"] != IGNORED).sum()

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossSum:
        """Cross-entropy over the batch from either side, at the temperature that the model learns. Other pairs with the same text or the
        same picture are no wrong answers. `correct`: pictures whose text is the nearest."""
        ids, labels = batch["input_ids"], batch["labels"]
        pixels = batch["pixel_values"].to(next(model.parameters()).dtype)
        cosines = model(input_ids=ids, attention_mask=batch["attention_mask"], pixel_values=pixels).logits_per_image.float()
        same = (ids[:, None] == ids[None]).all(-1) | (batch["pictures"][:, None] == batch["pictures"][None])
        cosines = cosines.masked_fill(same.fill_diagonal_(False), -torch.inf)
        total = sum(F.cross_entropy(side, labels, ignore_index=IGNORED, reduction="sum") for side in (cosines, cosines.T)) / 2
        return LossSum(total, (cosines.detach().argmax(-1) == labels).sum())

    def predict(self, rows: Sequence[Row], ask: Ask) -> list[dict[str, Any]]:
        sides = {name: [answer["embedding"] for answer in ask([{name: row[name]} for row in rows])] for name in ("image", "text")}
        return [{"image": image, "text": text} for image, text in zip(sides["image"], sides["text"], strict=True)]

    def score(self, predictions: Sequence[Row], rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        """For each picture, whether one of its texts is among the nearest of all texts of the rows; for each text, whether one of its
        pictures is among the nearest of all pictures; what is there more than once counts once. Chance of the first: one in as many as
        there are texts, where each picture has one."""
        numbers, vectors = {}, {}
        for side in ("image", "text"):
            first: dict[str, int] = {}
            for place, row in enumerate(rows):
                first.setdefault(row[side], place)
            number = {content: count for count, content in enumerate(first)}
            numbers[side] = np.array([number[row[side]] for row in rows])
            vectors[side] = _units([predictions[place][side] for place in first.values()])
        found = {"rows": len(rows), "texts": len(vectors["text"])}
        return found | _recall("image", "text", vectors, numbers) | _recall("text", "image", vectors, numbers)

    def baseline(self, train: Sequence[Row], labels: Sequence[str], seed: int) -> Callable[[Sequence[Row]], list[dict[str, Any]]] | None:
        """TF-IDF of the texts, reduced to a few dimensions, and a ridge regression from the pixels to it."""
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import Ridge

        words = TfidfVectorizer(sublinear_tf=True, **WORDS)
        counts = words.fit_transform([row["text"] for row in train])
        reduced = TruncatedSVD(max(1, min(BASELINE_WIDTH, *(side - 1 for side in counts.shape))), random_state=seed)
        regression = Ridge(alpha=10.0).fit(small_pixels([row["image"] for row in train]), reduced.fit_transform(counts))

        def vectors(rows: Sequence[Row]) -> list[dict[str, Any]]:
            images = regression.predict(small_pixels([row["image"] for row in rows]))
            texts = reduced.transform(words.transform([row["text"] for row in rows]))
            return [{"image": image, "text": text} for image, text in zip(images, texts, strict=True)]

        return vectors

    def signature(self, labels: Sequence[str], max_length: int) -> Signature:
        return Signature(
            problem="image_text",
            protocols=("embeds", "predicts"),
            inputs=("image", "text"),
            outputs=("embedding",),
            max_length=max_length,
        )


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    return dict(config.get(name) or {})


def _units(vectors: Sequence[Any]) -> Vectors:
    made = np.array(vectors, np.float32)
    scaled: Vectors = made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12)
    return scaled


def _recall(one: str, other: str, vectors: Mapping[str, Vectors], numbers: Mapping[str, Any]) -> dict[str, float]:
    """Share of the queries of the `one` side of which a candidate that is in a row with it is among the nearest of the `other` side.
    `numbers`: which of the vectors each row has."""
    queries, candidates = vectors[one], vectors[other]
    pairs = np.unique(numbers[one].astype(np.int64) * len(candidates) + numbers[other])
    hits = dict.fromkeys(AT, 0)
    for start in range(0, len(queries), AT_ONCE):
        nearest = np.argsort(-(queries[start : start + AT_ONCE] @ candidates.T), axis=1, kind="stable")[:, : max(AT)]
        right = np.isin((start + np.arange(len(nearest)))[:, None] * len(candidates) + nearest, pairs)
        for at in AT:
            hits[at] += int(right[:, :at].any(1).sum())
    return {f"{one}_to_{other}_recall_at_{at}": count / len(queries) for at, count in hits.items()}

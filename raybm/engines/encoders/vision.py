"""Models of pictures: classification, and vectors of pictures and texts that can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from raybm.core.errors import UserError
from raybm.core.signature import Signature
from raybm.engines.encoders.encoding import Loaded
from raybm.engines.protocol import Embeddings
from raybm.models import dataurl
from raybm.models.image_text import ImageTextProcessor
from raybm.models.images import ImageProcessor


class Vision(Loaded):
    """A model of pictures; what its two kinds share."""

    def _pixels(self, images: ImageProcessor, urls: Sequence[tuple[int, object]]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Numbered data URLs in batches: their numbers, and what the model takes. Raises UserError with the number."""
        for start in range(0, len(urls), self.max_batch):
            part = urls[start : start + self.max_batch]
            made = torch.cat([_picture(images, number, url) for number, url in part])
            yield [number for number, _ in part], made.to(self.model.device, self.model.dtype)


class ImageClassifier(Vision):
    """One label out of several (Predicts)."""

    def __init__(self, model: PreTrainedModel, images: ImageProcessor, signature: Signature, max_batch: int) -> None:
        super().__init__(model, signature, max_batch)
        self.images = images
        self.labels = signature.labels or tuple(str(model.config.id2label[i]) for i in range(model.config.num_labels))

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        self.check()
        answers: list[dict[str, Any]] = []
        for _, pixels in self._pixels(self.images, [(number, row.get("image")) for number, row in enumerate(rows)]):
            with torch.inference_mode():
                shares = torch.softmax(self.model(pixel_values=pixels).logits.float(), dim=-1).tolist()
            for share in shares:
                best = max(range(len(share)), key=share.__getitem__)
                answers.append({"label": self.labels[best], "score": share[best], "scores": dict(zip(self.labels, share, strict=True))})
        return answers


class ImageTextEmbedder(Vision):
    """Vectors of pictures and of texts in one space (Embeds, Predicts): CLIP's."""

    def __init__(self, model: PreTrainedModel, processor: ImageTextProcessor, signature: Signature, max_batch: int) -> None:
        super().__init__(model, signature, max_batch)
        self.processor = processor

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Of texts; one that is a data URL of an image counts as the picture."""
        return self._embed([{"image" if dataurl.is_image(text) else "text": text} for text in texts])

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows with `image` or `text` → {"embedding": a list of floats, of unit length, "tokens"}."""
        made = self._embed(rows)
        return [{"embedding": vector, "tokens": tokens} for vector, tokens in zip(made.vectors.tolist(), made.tokens, strict=True)]

    def _embed(self, rows: Sequence[Mapping[str, Any]]) -> Embeddings:
        self.check()
        vectors = np.zeros((len(rows), self.model.config.projection_dim), np.float32)
        tokens = [0] * len(rows)
        pictures = [(number, row["image"]) for number, row in enumerate(rows) if row.get("image") is not None]
        for places, pixels in self._pixels(self.processor.images, pictures):
            with torch.inference_mode():
                vectors[places] = _unit(self.model.get_image_features(pixel_values=pixels))
        texts = [(number, _text(row, number)) for number, row in enumerate(rows) if row.get("image") is None]
        texts.sort(key=lambda numbered: -len(numbered[1]))
        for start in range(0, len(texts), self.max_batch):
            part = texts[start : start + self.max_batch]
            places = [number for number, _ in part]
            ids = self.processor.ids([text for _, text in part], self.signature.max_length)
            width, lengths = max(map(len, ids)), torch.tensor([len(row) for row in ids])
            padded = torch.tensor([[*row, *row[-1:] * (width - len(row))] for row in ids])  # the first end-of-text token is what counts
            mask = (torch.arange(width) < lengths[:, None]).long()
            inputs = {"input_ids": padded.to(self.model.device), "attention_mask": mask.to(self.model.device)}
            with torch.inference_mode():
                vectors[places] = _unit(self.model.get_text_features(**inputs))
            for place, row in zip(places, ids, strict=True):
                tokens[place] = len(row)
        return Embeddings(vectors, tuple(tokens))


def _picture(images: ImageProcessor, number: int, url: object) -> torch.Tensor:
    try:
        return images([dataurl.decode(url)])
    except UserError as error:
        what = "has no image." if url is None else f"{error.what}"
        raise UserError(f"row {number}: {what}", where="image", remedy=error.remedy) from None


def _text(row: Mapping[str, Any], number: int) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise UserError(f"row {number} has neither image nor text.", where="text", remedy="Give each row a data URL `image`, or a `text`.")
    return text


def _unit(features: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(rows, width), each row of length 1."""
    vectors = getattr(features, "pooler_output", features)  # transformers 5 gives an output whose pooler_output is projected
    made: np.ndarray[Any, np.dtype[np.float32]] = torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
    return made

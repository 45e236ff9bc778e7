"""The processor of a model that takes pictures and texts: both processors in one folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybm.models.images import ImageProcessor


@dataclass(frozen=True)
class ImageTextProcessor:
    tokenizer: Any
    images: ImageProcessor

    def ids(self, texts: list[str], max_length: int) -> list[list[int]]:
        """Token ids, cut to `max_length`, each with the end-of-text token last: CLIP's vector of a text is taken there."""
        end = self.tokenizer.eos_token_id
        encoded = self.tokenizer(texts, truncation=True, max_length=max_length)["input_ids"] if texts else []
        return [ids if ids and ids[-1] == end else [*ids[: max_length - 1], end] for ids in encoded]

    def save_pretrained(self, folder: Path | str) -> None:
        self.tokenizer.save_pretrained(folder)
        self.images.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: Path | str, **options: Any) -> ImageTextProcessor:
        """Raises UserError as `ImageProcessor.from_pretrained`."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(folder, **options), ImageProcessor.from_pretrained(folder))

"""What turns raw values into numbers, by what a task takes in: a tokenizer for text, the columns of a table, what scales pictures,
or that and a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raybm.models import tokenizers
from raybm.models.spec import ModelInput

if TYPE_CHECKING:
    from raybm.core.storage import Storage

Input = Literal["text", "columns", "image", "image_text"]


def build(takes: Input, spec: ModelInput, storage: Storage | None, texts: Callable[[], Iterator[str]]) -> Any:
    """The processor of a model that is to be trained; `texts` gives the training split's, for a tokenizer that is trained on them. It
    has `save_pretrained(folder)`. What a table's columns hold, the task tells it (`Task.learn`). Raises what
    `tokenizers.tokenizer` and `images.image_processor` raise."""
    if takes == "columns":
        from raybm.models.tabular import Columns

        return Columns()
    if takes == "text":
        return tokenizers.tokenizer(spec, storage, texts)
    from raybm.models.image_text import ImageTextProcessor
    from raybm.models.images import image_processor

    images = image_processor(spec, storage)
    return images if takes == "image" else ImageTextProcessor(tokenizers.tokenizer(spec, storage, texts), images)


def load(takes: Input, folder: Path) -> Any:
    """What `save_pretrained` left in `folder`."""
    if takes == "columns":
        from raybm.models.tabular import Columns

        return Columns.from_pretrained(folder)
    if takes == "image":
        from raybm.models.images import ImageProcessor

        return ImageProcessor.from_pretrained(folder)
    if takes == "image_text":
        from raybm.models.image_text import ImageTextProcessor

        return ImageTextProcessor.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)

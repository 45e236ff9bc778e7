"""What turns raw values into numbers, by what a task takes in: a tokenizer for text, the columns of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raybm.models import tokenizers
from raybm.models.spec import ModelSpec

if TYPE_CHECKING:
    from raybm.core.storage import Storage

Input = Literal["text", "columns"]


def build(takes: Input, spec: ModelSpec, storage: Storage | None, texts: Callable[[], Iterator[str]]) -> Any:
    """The processor of a model that is to be trained; `texts` gives the training split's, for a tokenizer that is trained on them. It
    has `save_pretrained(folder)`. What a table's columns hold, the task tells it (`Task.learn`). Raises what
    `raybm.models.tokenizers.tokenizer` raises."""
    if takes == "columns":
        from raybm.models.tabular import Columns

        return Columns()
    return tokenizers.tokenizer(spec, storage, texts)


def load(takes: Input, folder: Path) -> Any:
    """What `save_pretrained` left in `folder`."""
    if takes == "columns":
        from raybm.models.tabular import Columns

        return Columns.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)

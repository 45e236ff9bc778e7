"""What a task does, from rows to scores. The training loop and the stages know only this."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from raybm.core.signature import Signature

Row = Mapping[str, Any]
Batch = dict[str, torch.Tensor]
Column = Callable[[str], Iterator[tuple[Any, Any]]]
"""Of a column of all rows, part by part: where each row begins, and where the last ends, in the part's numbers; and these (arrays)."""
Ask = Callable[[Sequence[Row]], list[dict[str, Any]]]
"""The engine that will serve the model, as a function: rows of the signature's inputs → rows of its outputs, in order."""


@dataclass(frozen=True)
class LossSum:
    """A loss summed over `units` (samples for a classifier, target tokens for a language model).

    Sums and not means, so that ranks and micro-batches of different sizes weigh what they hold.
    `total`: scalar tensor with gradient; `correct`: scalar tensor, how many units were predicted right, where that means anything.
    """

    total: torch.Tensor
    correct: torch.Tensor | None = None


class Task(Protocol):
    """What a task's class inherits and fills; what not every task has comes last, with what it is for the others. `processor` is
    what turns raw values into numbers: a tokenizer, or what takes its place where rows are no text."""

    def encode(self, rows: Sequence[Row], processor: Any, labels: Sequence[str], max_length: int) -> list[dict[str, Any]]:
        """Rows of standard columns → as many rows of numbers: every column a list of int or of float, or an array of uint8, the same
        columns in each. `input_ids`, where there are any, say how long a row is. A row that cannot be encoded comes back as
        {"_bad": reason}."""

    def model(self, folder: Path | None, config: Mapping[str, Any], labels: Sequence[str], processor: Any) -> PreTrainedModel:
        """The model with this task's head: from a folder's weights, with `config` over the folder's, or from scratch by a
        transformers config (`model_type` and its fields) where `folder` is None."""

    def collate(self, rows: Sequence[Row], processor: Any, seed: int | None = None) -> Batch:
        """Encoded rows → padded tensors; an empty list gives a batch of one row that counts for nothing. `seed`: of what is drawn
        for training (masks, crops), None for an evaluation, which draws the same each time."""

    def units(self, batch: Batch) -> torch.Tensor:
        """How many units the batch's loss sums over: scalar int64 tensor."""

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossSum: ...

    def signature(self, labels: Sequence[str], max_length: int) -> Signature: ...

    def labels(self, seen: Sequence[str]) -> tuple[str, ...]:
        """The label set, from the distinct labels of the training split, sorted. Raises DataError."""
        return ()

    def learn(self, processor: Any, rows: Callable[[], Iterator[Row]]) -> dict[str, Any]:
        """What the training rows say before any is encoded: may complete the processor, and returns fields for the model's config
        (the scale of a regression's targets). `rows` reads them from the start each time."""
        return {}

    def check(self, model: torch.nn.Module, column: Column, device: torch.device) -> None:
        """Before the first step: raises UserError where the model cannot do what the training rows ask. Collective: may call the model."""
        return

    def published(self, model: Any) -> PreTrainedModel:
        """The part of what `model` gave that is adapted, and saved in the end."""
        trained: PreTrainedModel = model
        return trained

    def compare(self, model: Any, start: Callable[[], Path], processor: Any) -> None:
        """Before trained weights are evaluated, for tasks whose loss compares them with those that training started from: takes these
        from the folder `start()`."""
        return

    def pack(self, rows: Sequence[dict[str, Any]], max_length: int) -> list[dict[str, Any]]:
        """Encoded rows → the sequences to train on, perhaps several rows in one."""
        return list(rows)

    def predict(self, rows: Sequence[Row], ask: Ask) -> list[dict[str, Any]]:
        """Rows of standard columns → what the engine makes of each, in order. For tasks whose spec says PREDICTS."""
        raise TypeError(f"{type(self).__name__} predicts nothing")

    def score(self, predictions: Sequence[Row], rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        """Predictions beside the rows they are for → numbers by name, and `per_class`, `confusion`, `labels` where they apply."""
        return {}

    def baseline(self, train: Sequence[Row], labels: Sequence[str], seed: int) -> Callable[[Sequence[Row]], list[dict[str, Any]]] | None:
        """A simple model trained on the same rows: rows → predictions, for `score`. What a model of ours has to beat."""
        return None

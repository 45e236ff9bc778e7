"""What a task does, from rows to scores. The training loop and the stages know only this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybm.core.signature import Signature

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LossSum:
    """A loss summed over `units` (samples for a classifier, target tokens for a language model).

    Sums and not means, so that ranks and micro-batches of different sizes weigh what they hold.
    `total`: scalar tensor with gradient; `correct`: scalar tensor, how many units were predicted right.
    """

    total: torch.Tensor
    correct: torch.Tensor


class Task(Protocol):
    def labels(self, seen: Sequence[str]) -> tuple[str, ...]:
        """The label set, from the distinct `label` values of the training split; () for tasks without. Raises DataError."""

    def encode(
        self, rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], max_length: int
    ) -> list[dict[str, Any]]:
        """Rows of standard columns → rows of token ids (`input_ids`, `labels`: lists of int). May return fewer rows or more
        (packing). A row that cannot be encoded comes back as {"_bad": reason}."""

    def model(
        self, folder: Path | None, config: Mapping[str, Any], labels: Sequence[str], tokenizer: PreTrainedTokenizerBase
    ) -> PreTrainedModel:
        """The model with this task's head: from a folder's weights, or from scratch by a transformers config
        (`model_type` and its fields) where `folder` is None."""

    def collate(self, rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Encoded rows → padded tensors; an empty list gives a batch of one row that counts for nothing."""

    def units(self, batch: Batch) -> torch.Tensor:
        """How many units the batch's loss sums over: scalar int64 tensor."""

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossSum: ...

    def predict_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
        """Rows of standard columns → inputs for the engine's Predicts, or None where the score needs only the loss."""

    def score(self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, Any]:
        """Predictions of the engine beside the rows they are for → numbers by name, and `per_class`, `confusion` where they apply."""

    def signature(self, labels: Sequence[str], max_length: int) -> Signature: ...

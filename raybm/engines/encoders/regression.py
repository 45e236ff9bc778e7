"""Regressors of texts and of rows of a table: a number each, in the units of the data that they learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from raybm.core.errors import DataError, UserError
from raybm.core.signature import Signature
from raybm.engines.encoders.encoding import Encoder, Loaded, texts_of
from raybm.models.tabular import FILE, Columns


class TextOrColumns:
    """The processor of a regressor: a tokenizer, or what reads the columns of a table."""

    @staticmethod
    def from_pretrained(folder: Path, **settings: Any) -> Any:
        return Columns.from_pretrained(folder) if (folder / FILE).exists() else AutoTokenizer.from_pretrained(folder, **settings)


def regressor(model: PreTrainedModel, processor: Any, signature: Signature, max_batch: int) -> Any:
    """The engine for either."""
    return (TableRegressor if isinstance(processor, Columns) else TextRegressor)(model, processor, signature, max_batch)


class TextRegressor(Encoder):
    """A number for a text, or for two, as cross-encoders give it (Predicts)."""

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        answers: dict[int, dict[str, Any]] = {}
        for places, inputs in self._batches([texts_of(row, i) for i, row in enumerate(rows)]):
            values, lengths = _values(self.model, inputs), inputs["attention_mask"].sum(1).tolist()
            for place, value, tokens in zip(places, values, lengths, strict=True):
                answers[place] = {"value": value, "tokens": tokens}
        return [answers[i] for i in range(len(rows))]


class TableRegressor(Loaded):
    """A number for a row of a table (Predicts)."""

    def __init__(self, model: PreTrainedModel, columns: Columns, signature: Signature, max_batch: int) -> None:
        super().__init__(model, signature, max_batch)
        self.columns = columns

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        self.check()
        encoded = [self._encoded(row, i) for i, row in enumerate(rows)]
        answers: list[dict[str, Any]] = []
        for start in range(0, len(rows), self.max_batch):
            part = encoded[start : start + self.max_batch]
            inputs = {name: torch.tensor([row[name] for row in part], device=self.model.device) for name in part[0]}
            answers += [{"value": value} for value in _values(self.model, inputs)]
        return answers

    def _encoded(self, row: Mapping[str, Any], number: int) -> dict[str, list[Any]]:
        if missing := [name for name in self.signature.inputs if row.get(name) is None]:
            raise UserError(f"row {number} has no {missing[0]}.", where=missing[0], remedy=f"Give {', '.join(self.signature.inputs)}.")
        try:
            return self.columns.encode(row)
        except DataError as error:
            raise UserError(f"in row {number}, {error.what}.", remedy=error.remedy) from None


def _values(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> list[float]:
    with torch.inference_mode():
        values = model(**inputs).logits.double().squeeze(-1)
    found: list[float] = (values * getattr(model.config, "target_std", 1.0) + getattr(model.config, "target_mean", 0.0)).tolist()
    return found

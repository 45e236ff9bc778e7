"""Regression of texts and of rows of a table: one output, the squared or Huber error of standardised targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from raybm.core.errors import DataError
from raybm.core.signature import Signature
from raybm.models import own
from raybm.models.tabular import number
from raybm.tasks.baselines import linear_table_regression, linear_text_regression
from raybm.tasks.batching import pad
from raybm.tasks.classification import padding
from raybm.tasks.protocol import Ask, Batch, LossSum, Row, Task
from raybm.tasks.regression.spec import Regression


class RegressionTask(Task):
    def __init__(self, spec: Regression) -> None:
        self.spec = spec
        self.inputs = spec.columns()[0][:-1]

    def learn(self, processor: Any, rows: Callable[[], Iterator[Row]]) -> dict[str, Any]:
        """Mean and standard deviation of the targets. Raises DataError where they are all the same."""
        targets = np.fromiter((value for row in rows() if (value := number(row["label"])) is not None), np.float64)
        if not len(targets) or not targets.std():
            what = "no label is a number." if not len(targets) else "every label is the same number."
            raise DataError(what, where="task", remedy="Map the column that is to be predicted to `label`.")
        scale = {"target_mean": float(targets.mean()), "target_std": float(targets.std())}
        if self.spec.features is None:
            return scale
        processor.fit(rows(), self.spec.features.numeric, self.spec.features.categorical)
        categories = [len(values) + 1 for values in processor.categorical.values()]
        return {"numeric": len(processor.numeric), "categories": categories, **scale}

    def encode(self, rows: Sequence[Row], processor: Any, labels: Sequence[str], max_length: int) -> list[dict[str, Any]]:
        texts = [row["text"] for row in rows] if self.spec.features is None else []
        ids = processor(texts, truncation=True, max_length=max_length)["input_ids"] if texts else []
        made: list[dict[str, Any]] = []
        for place, row in enumerate(rows):
            target = number(row["label"])
            try:
                columns = {"input_ids": ids[place]} if texts else processor.encode(row)
            except DataError as error:
                columns = {"_bad": error.what}
            if target is None:
                columns = {"_bad": f"label {row['label'][:40]!r} is no number"}
            made.append(columns if "_bad" in columns else columns | {"labels": [target]})
        return made

    def model(self, folder: Path | None, config: Mapping[str, Any], labels: Sequence[str], processor: Any) -> PreTrainedModel:
        own.register()
        settings: dict[str, Any] = {**config, "num_labels": 1, "problem_type": "regression"}
        if folder is not None:
            whole = AutoConfig.from_pretrained(folder)
            whole.update(padding(whole, processor) | settings)
            return AutoModelForSequenceClassification.from_pretrained(  # with a new head in a classifier's place
                folder, config=whole, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True
            )
        if self.spec.features is None:
            settings = {"vocab_size": len(processor), "pad_token_id": processor.pad_token_id, **settings}
        return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)

    def collate(self, rows: Sequence[Row], processor: Any, seed: int | None = None) -> Batch:
        batch = self._inputs(rows, processor)
        targets = torch.tensor([float(row["labels"][0]) for row in rows] or [0.0])
        return {**batch, "labels": targets, "counts": torch.full_like(targets, float(bool(rows)))}

    def _inputs(self, rows: Sequence[Row], processor: Any) -> Batch:
        if self.spec.features is None:
            ids, mask = pad([row["input_ids"] for row in rows] or [[processor.pad_token_id or 0]], processor.pad_token_id or 0)
            return {"input_ids": ids, "attention_mask": mask}
        kinds = {"numeric": (processor.numeric, torch.float32), "categorical": (processor.categorical, torch.int64)}
        return {
            name: torch.tensor(np.array([row[name] for row in rows] or [[0] * len(columns)]), dtype=kind)
            for name, (columns, kind) in kinds.items()
            if columns
        }

    def units(self, batch: Batch) -> torch.Tensor:
        return batch["counts"].sum().long()

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossSum:
        config: Any = getattr(model, "module", model).config
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("labels", "counts")}
        said = model(**inputs).logits.float().squeeze(-1)
        wanted = (batch["labels"] - config.target_mean) / config.target_std
        error = (F.mse_loss if self.spec.loss == "squared" else F.huber_loss)(said, wanted, reduction="none")
        return LossSum((error * batch["counts"]).sum())

    def predict(self, rows: Sequence[Row], ask: Ask) -> list[dict[str, Any]]:
        return ask([{name: row[name] for name in self.inputs} for row in rows])

    def baseline(self, train: Sequence[Row], labels: Sequence[str], seed: int) -> Callable[[Sequence[Row]], list[dict[str, Any]]] | None:
        targets, features = [float(row["label"]) for row in train], self.spec.features
        if features is None:
            model = linear_text_regression([row["text"] for row in train], targets)
            return lambda rows: [{"value": float(value)} for value in model.predict([row["text"] for row in rows])]
        table = linear_table_regression(train, features.numeric, features.categorical, targets)
        return lambda rows: [{"value": value} for value in table(rows)]

    def score(self, predictions: Sequence[Row], rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        """Those that have no value (r2 of one row, the correlation with a constant) are left out."""
        import pandas as pd

        truth = np.array([float(row["label"]) for row in rows])
        said = np.array([prediction["value"] for prediction in predictions])
        error, spread = said - truth, ((truth - truth.mean()) ** 2).sum()
        scores = {"rmse": math.sqrt((error**2).mean()), "mae": float(np.abs(error).mean())}
        if spread:
            scores["r2"] = float(1 - (error**2).sum() / spread)
        if spread and said.std():
            scores["spearman"] = float(np.corrcoef(pd.Series(truth).rank(), pd.Series(said).rank())[0, 1])
        return {"rows": len(truth), **scores}

    def signature(self, labels: Sequence[str], max_length: int) -> Signature:
        return Signature(problem="regression", protocols=("predicts",), inputs=self.inputs, outputs=("value",), max_length=max_length)

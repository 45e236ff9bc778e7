"""Token classification: an encoder with a linear head over every token, cross-entropy, scores over whole entities (conlleval's, by
seqeval): an entity counts as found where its kind and both of its ends are right."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForTokenClassification, PreTrainedModel

from raybm.core.errors import DataError
from raybm.core.signature import Signature
from raybm.models.tokenizers import config_fields
from raybm.models.words import Pieces, pieces
from raybm.tasks.batching import IGNORED, labelled, summed_cross_entropy, training_only
from raybm.tasks.classification import head_config, pretrained
from raybm.tasks.protocol import Ask, Batch, LossSum, Row, Task
from raybm.tasks.token_classification.spec import TokenClassification

OUTSIDE = "O"


class TokenClassificationTask(Task):
    def __init__(self, spec: TokenClassification) -> None:
        self.spec = spec

    def labels(self, seen: Sequence[str]) -> tuple[str, ...]:
        tags = self.spec.tags or tuple(sorted(seen))
        if odd := [tag for tag in tags if tag != OUTSIDE and tag[:2] not in ("B-", "I-")]:
            what = f"{odd[0]!r} is no tag: {OUTSIDE}, or B-… and I-… with the kind of entity."
            raise DataError(what, where="tags", remedy="Check which column the tags stand in, or name them B-X, I-X, O.")
        if len(tags) < 2:
            raise DataError(f"the training split holds {len(tags)} tag(s).", where="task", remedy="A tagger needs two or more.")
        return tags

    def encode(self, rows: Sequence[Row], processor: Any, labels: Sequence[str], max_length: int) -> list[dict[str, Any]]:
        index = {tag: i for i, tag in enumerate(labels)}
        wrong = [_wrong(row, index) for row in rows]
        good = [row for row, reason in zip(rows, wrong, strict=True) if not reason]
        first: dict[int, Pieces] = {}
        for part in pieces(processor, [row["tokens"] for row in good], max_length):
            first.setdefault(part.row, part)  # what does not fit is cut
        made = iter(_labelled(first[place], row["tags"], index) for place, row in enumerate(good))
        return [{"_bad": reason} if reason else next(made) for reason in wrong]

    def model(self, folder: Path | None, config: Mapping[str, Any], labels: Sequence[str], processor: Any) -> PreTrainedModel:
        if folder is not None:
            return pretrained(AutoModelForTokenClassification, folder, config, labels, processor)
        settings = {**config_fields(processor), **head_config(labels), **config}
        return AutoModelForTokenClassification.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)

    def collate(self, rows: Sequence[Row], processor: Any, seed: int | None = None) -> Batch:
        filled = rows or [{"input_ids": [processor.pad_token_id or 0], "labels": [IGNORED]}]
        return labelled(filled, processor.pad_token_id or 0)

    def units(self, batch: Batch) -> torch.Tensor:
        return (batch["labels"] != IGNORED).sum()

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossSum:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return summed_cross_entropy(logits, batch["labels"], training_only(model, self.spec.label_smoothing))

    def predict(self, rows: Sequence[Row], ask: Ask) -> list[dict[str, Any]]:
        return ask([{"tokens": row["tokens"]} for row in rows])

    def baseline(self, train: Sequence[Row], labels: Sequence[str], seed: int) -> Callable[[Sequence[Row]], list[dict[str, Any]]] | None:
        """Every token's most frequent tag; O for tokens that training never showed."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for row in train:
            for token, tag in zip(row["tokens"], row["tags"], strict=True):
                counts[token][tag] += 1
        usual = {token: min(seen, key=lambda tag: (-seen[tag], tag)) for token, seen in counts.items()}
        return lambda rows: [{"tags": [usual.get(token, OUTSIDE) for token in row["tokens"]]} for row in rows]

    def score(self, predictions: Sequence[Row], rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        from seqeval.metrics import accuracy_score, classification_report

        truth, said = [list(row["tags"]) for row in rows], [list(prediction["tags"]) for prediction in predictions]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of averages over no entity, which are 0 here
            report = classification_report(truth, said, output_dict=True, zero_division=0)
        micro = _numbers(report["micro avg"])
        return {
            "rows": len(truth),
            "token_accuracy": float(accuracy_score(truth, said)),
            **{name: micro[name] for name in ("precision", "recall", "f1")},
            "per_class": {name: _numbers(scores) for name, scores in report.items() if not name.endswith(" avg")},
        }

    def signature(self, labels: Sequence[str], max_length: int) -> Signature:
        return Signature(
            problem="token_classification",
            protocols=("predicts",),
            inputs=("tokens",),
            outputs=("tags",),
            labels=tuple(labels),
            max_length=max_length,
        )


def _wrong(row: Row, index: Mapping[str, int]) -> str:
    """Why a row cannot be learnt from, or ""."""
    tokens, tags = row["tokens"], row["tags"]
    if not len(tokens):
        return "no tokens"
    if len(tokens) != len(tags):
        return f"{len(tokens)} tokens and {len(tags)} tags"
    return next((f"tag {tag!r} is none of {', '.join(index)}" for tag in tags if tag not in index), "")


def _labelled(part: Pieces, tags: Sequence[str], index: Mapping[str, int]) -> dict[str, Any]:
    labels = [IGNORED if word is None else index[tags[word]] for word in part.words]
    if all(label == IGNORED for label in labels):
        return {"_bad": "the tokenizer makes nothing of its tokens"}
    return {"input_ids": part.ids, "labels": labels}


def _numbers(scores: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: float(scores[key]) for name, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score"))}
    return {**named, "support": int(scores["support"])}

"""One label out of several: the label set, the head and the scores, shared by tasks whatever their rows are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from raybm.core.errors import DataError
from raybm.tasks.protocol import Row


def label_set(stated: Sequence[str] | None, seen: Sequence[str]) -> tuple[str, ...]:
    """The labels in the order of the logits: those of the spec, or those of the training split, sorted. Raises DataError."""
    labels = tuple(stated or sorted(seen))
    if len(labels) < 2:
        what = f"the training split holds {len(labels)} label(s): {', '.join(labels)}."
        raise DataError(what, where="task", remedy="A classifier needs two or more.")
    return labels


def head_config(labels: Sequence[str]) -> dict[str, Any]:
    """What a transformers config says of the labels."""
    names = dict(enumerate(labels))
    return {"num_labels": len(labels), "id2label": names, "label2id": {label: i for i, label in names.items()}}


def scores(predictions: Sequence[Row], rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
    """`label` of the predictions beside `label` of the rows: accuracy, precision, recall and F1 over all and by class, the confusion."""
    truth, said = [row["label"] for row in rows], [prediction["label"] for prediction in predictions]
    found = {"rows": len(truth), "accuracy": float(accuracy_score(truth, said)), **averages(truth, said, labels, labels=list(labels))}
    found["confusion"] = confusion_matrix(truth, said, labels=list(labels)).tolist()  # rows: truth, columns: prediction
    return found


def averages(truth: Any, said: Any, names: Sequence[str], **settings: Any) -> dict[str, Any]:
    """Precision, recall and F1 over all, by class on average, and of each class. `truth` and `said`: labels, or a column of 0 and 1 for
    each of `names`; `settings` go to scikit-learn."""
    found: dict[str, Any] = {}
    for average in ("micro", "macro"):
        precision, recall, f1, _ = precision_recall_fscore_support(truth, said, average=average, zero_division=0, **settings)
        found |= {f"{average}_precision": float(precision), f"{average}_recall": float(recall), f"{average}_f1": float(f1)}
    each = np.stack(precision_recall_fscore_support(truth, said, average=None, zero_division=0, **settings), axis=1)
    found["per_class"] = {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for label, (p, r, f, n) in zip(names, each, strict=True)
    }
    found["labels"] = list(names)
    return found

"""One label out of several: the label set, the head and the scores, shared by tasks whatever their rows are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
from transformers import AutoConfig, PreTrainedModel

from raybm.core.errors import DataError
from raybm.models.adapters import heads
from raybm.tasks.protocol import Row


def label_set(stated: Sequence[str] | None, seen: Sequence[str]) -> tuple[str, ...]:
    """The labels in the order of the logits: those of the spec, or those of the training split, sorted. Raises DataError."""
    labels = tuple(stated or sorted(seen))
    if len(labels) < 2:
        what = f"the training split holds {len(labels)} label(s): {', '.join(labels)}."
        raise DataError(what, where="task", remedy="A classifier needs two or more.")
    return labels


def head_config(labels: Sequence[str]) -> dict[str, Any]:
    """What a transformers config says of the labels, one of which is true of a row."""
    names = dict(enumerate(labels))
    told = {"num_labels": len(labels), "id2label": names, "label2id": {label: i for i, label in names.items()}}
    return told | {"problem_type": "single_label_classification"}


def pretrained(kind: Any, folder: Path, config: Mapping[str, Any], labels: Sequence[str], processor: Any = None) -> PreTrainedModel:
    """The model of a folder by `kind` (an Auto class of transformers), with its head where that tells the same labels in the same order,
    else with a new one. `config` is put over the folder's. `processor`: a tokenizer, whose padding decoders have to know."""
    given = AutoConfig.from_pretrained(folder)
    settings = {**padding(given, processor), **head_config(labels), **config}
    model: PreTrainedModel = kind.from_pretrained(
        folder, **settings, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True
    )
    known = [given.id2label[place] for place in sorted(given.id2label)]
    if type(model).__name__ in (given.architectures or ()) and known != list(labels):
        for head in heads(model).values():
            _renew(model, head)
    return model


def padding(given: Any, processor: Any) -> dict[str, Any]:
    """The tokenizer's padding token, for a config that knows none or another: where a decoder classifies is the last token before it."""
    token = getattr(processor, "pad_token_id", None)
    return {} if token in (None, getattr(given, "pad_token_id", None)) else {"pad_token_id": token}


@torch.no_grad()
def _renew(model: Any, head: torch.nn.Module) -> None:
    """Random weights, as transformers gives a model that has none. Collective where they are sharded (ZeRO stage 3)."""
    weights = list(head.parameters())
    for weight in weights:
        weight._is_hf_initialized = False  # else it leaves what was loaded
    if any(hasattr(weight, "ds_id") for weight in weights):
        import deepspeed

        with deepspeed.zero.GatheredParameters(weights, modifier_rank=0):
            head.apply(model._init_weights)
    else:
        head.apply(model._init_weights)


def scores(predictions: Sequence[Row], rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
    """`label` of the predictions beside `label` of the rows: accuracy, precision, recall and F1 over all and by class, the confusion."""
    truth, said = [row["label"] for row in rows], [prediction["label"] for prediction in predictions]
    found = {"rows": len(truth), "accuracy": float(accuracy_score(truth, said)), **averages(truth, said, labels)}
    found["confusion"] = confusion_matrix(truth, said, labels=list(labels)).tolist()  # rows: truth, columns: prediction
    return found


def averages(truth: Any, said: Any, names: Sequence[str]) -> dict[str, Any]:
    """Precision, recall and F1 over all, by class on average, and of each class. `truth` and `said`: labels, or a column of 0 and 1 for
    each of `names`. Of labels, those that nobody has or is given count for no average, as in scikit-learn: a slice may know a few only."""
    found: dict[str, Any] = {}
    for average in ("micro", "macro"):
        precision, recall, f1, _ = precision_recall_fscore_support(truth, said, average=average, zero_division=0)
        found |= {f"{average}_precision": float(precision), f"{average}_recall": float(recall), f"{average}_f1": float(f1)}
    order = {"labels": list(names)} if isinstance(truth, list) else {}
    each = np.stack(precision_recall_fscore_support(truth, said, average=None, zero_division=0, **order), axis=1)
    found["per_class"] = {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for label, (p, r, f, n) in zip(names, each, strict=True)
    }
    found["labels"] = list(names)
    return found

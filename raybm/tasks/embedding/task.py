"""Embedding: an encoder's mean vectors, contrasted within the batch; scored by finding each anchor's positive among all of the split's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, PreTrainedModel

from raybm.core.signature import Signature
from raybm.tasks.batching import IGNORED, pad
from raybm.tasks.embedding.spec import Embedding
from raybm.tasks.protocol import Ask, Batch, LossSum, Row, Task

AT_ONCE = 1000  # anchors whose similarities are held together

Places = np.ndarray[Any, np.dtype[np.float64]]


class EmbeddingTask(Task):
    def __init__(self, spec: Embedding) -> None:
        self.spec = spec

    def encode(self, rows: Sequence[Row], processor: Any, labels: Sequence[str], max_length: int) -> list[dict[str, Any]]:
        if not rows:
            return []
        anchors, positives = (
            processor([row[name] for row in rows], truncation=True, max_length=max_length)["input_ids"] for name in ("anchor", "positive")
        )
        return [
            {"input_ids": anchor, "positive_ids": positive} if anchor and positive else {"_bad": "anchor or positive is empty"}
            for anchor, positive in zip(anchors, positives, strict=True)
        ]

    def model(self, folder: Path | None, config: Mapping[str, Any], labels: Sequence[str], processor: Any) -> PreTrainedModel:
        if folder is not None:
            model = AutoModel.from_pretrained(folder, **config, dtype=torch.float32, use_safetensors=True)
        else:
            settings = {"vocab_size": len(processor), "pad_token_id": processor.pad_token_id, **config}
            model = AutoModel.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
        if getattr(model, "pooler", None) is not None:
            model.pooler.requires_grad_(False)  # BERT's: nothing here goes through it
        return model

    def collate(self, rows: Sequence[Row], processor: Any, seed: int | None = None) -> Batch:
        empty = {"input_ids": [processor.pad_token_id or 0], "positive_ids": [processor.pad_token_id or 0]}
        filled = rows or [empty]
        ids, mask = pad([row["input_ids"] for row in filled], processor.pad_token_id or 0)
        positive_ids, positive_mask = pad([row["positive_ids"] for row in filled], processor.pad_token_id or 0)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "positive_ids": positive_ids,
            "positive_mask": positive_mask,
            "labels": torch.arange(len(rows)) if rows else torch.tensor([IGNORED]),
        }

    def units(self, batch: Batch) -> torch.Tensor:
        return (batch["labels"] != IGNORED).sum()

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossSum:
        """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) over cosines, from either side, as CLIP has it (arXiv:2103.00020). A pair's
        equals in the batch are no wrong answers. `correct`: anchors whose positive is the nearest."""
        anchors, positives, labels = batch["input_ids"], batch["positive_ids"], batch["labels"]
        width = max(anchors.shape[1], positives.shape[1])
        ids = torch.cat([F.pad(part, (0, width - part.shape[1])) for part in (anchors, positives)])
        mask = torch.cat([F.pad(part, (0, width - part.shape[1])) for part in (batch["attention_mask"], batch["positive_mask"])])
        vectors = _mean(model(input_ids=ids, attention_mask=mask).last_hidden_state.float(), mask)
        cosines = vectors[: len(anchors)] @ vectors[len(anchors) :].T / self.spec.temperature
        same = _equal(anchors) | _equal(positives)
        cosines = cosines.masked_fill(same.fill_diagonal_(False), -torch.inf)
        total = sum(F.cross_entropy(side, labels, ignore_index=IGNORED, reduction="sum") for side in (cosines, cosines.T)) / 2
        return LossSum(total, (cosines.detach().argmax(-1) == labels).sum())

    def predict(self, rows: Sequence[Row], ask: Ask) -> list[dict[str, Any]]:
        sides = {name: ask([{"text": row[name]} for row in rows]) for name in ("anchor", "positive")}
        return [
            {name: [round(float(value), 6) for value in made["embedding"]] for name, made in zip(sides, pair, strict=True)}
            for pair in zip(*sides.values(), strict=True)
        ]

    def score(self, predictions: Sequence[Row], rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        """Where the first of an anchor's positives stands among all distinct ones of the rows, the nearest first: the share of anchors
        that have it first, among the first ten, and the mean of one over its place. Of the anchor's other rows it is right, too."""
        anchors, positives = (_matrix([row[name] for row in predictions]) for name in ("anchor", "positive"))
        places = _places(anchors, positives, [row["anchor"] for row in rows], [row["positive"] for row in rows])
        shares = {"recall_at_1": places <= 1, "recall_at_10": places <= 10, "mrr": 1 / places}
        return {"rows": len(rows), **{name: float(values.mean()) for name, values in shares.items()}}

    def baseline(self, train: Sequence[Row], labels: Sequence[str], seed: int) -> Callable[[Sequence[Row]], list[dict[str, Any]]] | None:
        """TF-IDF over pieces of words, of three to five characters: it also finds words inside of names."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
        pieces.fit(row[name] for row in train for name in ("anchor", "positive"))

        def vectors(rows: Sequence[Row]) -> list[dict[str, Any]]:
            sides = [pieces.transform([row[name] for row in rows]) for name in ("anchor", "positive")]
            return [{"anchor": one, "positive": other} for one, other in zip(*sides, strict=True)]

        return vectors

    def signature(self, labels: Sequence[str], max_length: int) -> Signature:
        return Signature(problem="embedding", protocols=("embeds",), inputs=("text",), outputs=("embedding",), max_length=max_length)


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(rows, tokens, width) → unit vectors (rows, width), as the engine pools where a model's folder says nothing else."""
    weights = mask[:, :, None].float()
    return F.normalize((hidden * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)


def _equal(ids: torch.Tensor) -> torch.Tensor:
    """(rows, rows): which rows hold the same text."""
    return (ids[:, None] == ids[None]).all(-1)


def _matrix(vectors: Sequence[Any]) -> Any:
    """Unit vectors, lists of numbers or rows of a sparse matrix, one under another."""
    return scipy.sparse.vstack(vectors).tocsr() if scipy.sparse.issparse(vectors[0]) else np.array(vectors, np.float32)


def _places(anchors: Any, positives: Any, asked: Sequence[str], texts: Sequence[str]) -> Places:
    """The place of the nearest of each anchor's positives among the distinct ones, from 1; among equals their middle."""
    first = {text: row for row, text in reversed(list(enumerate(texts)))}
    candidates = list(first.values())
    numbers = {text: number for number, text in enumerate(first)}
    own: dict[str, list[int]] = defaultdict(list)
    for anchor, text in zip(asked, texts, strict=True):
        own[anchor].append(numbers[text])
    places = np.empty(len(texts))
    for start in range(0, len(texts), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        cosines = anchors[part] @ positives[candidates].T
        cosines = cosines.toarray() if scipy.sparse.issparse(cosines) else cosines
        mine = np.array([row[own[anchor]].max() for row, anchor in zip(cosines, asked[part], strict=True)])[:, None]
        places[part] = 1 + (cosines > mine).sum(1) + ((cosines == mine).sum(1) - 1) / 2
    return places

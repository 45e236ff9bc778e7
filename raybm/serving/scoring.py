"""How well texts go with another text: by the model itself where it reads two at once, else by the cosine of their embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from raybm.core.errors import RaybmError
from raybm.core.signature import Signature
from raybm.engines.protocol import Embeddings, Scores


class Asked(Protocol):
    async def embed(self, texts: Sequence[str]) -> Embeddings: ...
    async def predict(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]: ...


async def score(model: Asked, signature: Signature, query: str, texts: Sequence[str]) -> Scores:
    """Of each text. Raises what the model raises."""
    if signature.pairs:
        rows = await model.predict([{"text": query, "text_pair": text} for text in texts])
        found = Scores(tuple(_logistic(row["value"]) for row in rows), sum(row["tokens"] for row in rows))
    else:
        found = _cosines(await model.embed((query, *texts)))
    if not all(map(math.isfinite, found.values)):
        raise RaybmError("the model's score is no number.", remedy="See whether its weights are whole.")
    return found


def _logistic(value: float) -> float:
    """Of a cross-encoder's one number: between 0 and 1, in the same order."""
    return 1 / (1 + math.exp(-max(value, -700.0)))  # below, exp overflows


def _cosines(found: Embeddings) -> Scores:
    """Of the first vector with the others."""
    vectors = np.asarray(found.vectors, dtype=np.float64)
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return Scores(tuple((units[1:] @ units[0]).round(6).tolist()), sum(found.tokens))

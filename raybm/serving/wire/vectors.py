"""What is made of embeddings: the vectors themselves, and how alike texts are."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PositiveInt

from raybm.engines.protocol import Embeddings
from raybm.serving.wire.base import Inputs, Json, Wire, usage


class Embed(Inputs):
    """The vectors of texts."""

    encoding_format: Literal["float", "base64"] = "float"

    def answer(self, result: Embeddings) -> Json:
        """base64 is of little-endian float32, as OpenAI's clients decode it."""
        if self.encoding_format == "base64":
            vectors: list[Any] = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in np.asarray(result.vectors)]
        else:
            vectors = np.asarray(result.vectors).tolist()
        data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
        return {"object": "list", "data": data, "model": self.model, "usage": usage(sum(result.tokens))}


class Compare(Wire, ABC):
    """Texts beside a text, by the cosine of their embeddings."""

    @abstractmethod
    def texts(self) -> tuple[str, ...]:
        """What is compared, then what it is compared with."""

    def inputs(self) -> int:
        return len(self.texts())

    @abstractmethod
    def answer(self, result: Embeddings) -> Json: ...

    def _scores(self, result: Embeddings) -> list[float]:
        vectors = np.asarray(result.vectors, dtype=np.float64)
        units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        scores: list[float] = (units[1:] @ units[0]).round(6).tolist()
        return scores


class Score(Compare):
    """How alike a text is to another, or to each of several (vLLM's)."""

    text_1: str
    text_2: str | Annotated[list[str], Field(min_length=1)]

    def texts(self) -> tuple[str, ...]:
        return (self.text_1, *((self.text_2,) if isinstance(self.text_2, str) else self.text_2))

    def answer(self, result: Embeddings) -> Json:
        data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(self._scores(result))]
        return {"object": "list", "data": data, "model": self.model, "usage": usage(sum(result.tokens))}


class Rerank(Compare):
    """Documents in the order in which they fit a query (Jina's and Cohere's)."""

    query: str
    documents: Annotated[list[str], Field(min_length=1)]
    top_n: PositiveInt | None = None
    return_documents: bool = True

    def texts(self) -> tuple[str, ...]:
        return (self.query, *self.documents)

    def answer(self, result: Embeddings) -> Json:
        ranked = sorted(enumerate(self._scores(result)), key=lambda found: -found[1])[: self.top_n]
        results = [
            {"index": index, "relevance_score": score} | ({"document": {"text": self.documents[index]}} if self.return_documents else {})
            for index, score in ranked
        ]
        return {"model": self.model, "results": results, "usage": usage(sum(result.tokens))}

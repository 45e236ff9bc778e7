"""What is made of embeddings: the vectors themselves, and how alike texts are."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PositiveInt

from raybm.core.errors import RaybmError
from raybm.engines.protocol import Embeddings, Scores
from raybm.serving.wire.base import Inputs, Json, Wire, usage


class Embed(Inputs):
    """The vectors of texts."""

    encoding_format: Literal["float", "base64"] = "float"

    def answer(self, result: Embeddings) -> Json:
        """base64 is of little-endian float32, as OpenAI's clients decode it. Raises RaybmError."""
        rows = np.asarray(result.vectors)
        if not np.isfinite(rows).all():
            raise RaybmError("the model's vectors are no numbers.", remedy="See whether its weights are whole.")
        if self.encoding_format == "base64":
            vectors: list[Any] = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]
        else:
            vectors = rows.tolist()
        data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
        return {"object": "list", "data": data, "model": self.model, "usage": usage(sum(result.tokens))}


class Compare(Wire, ABC):
    """Texts beside a text: by a cross-encoder, or by the cosine of embeddings."""

    @abstractmethod
    def compared(self) -> tuple[str, list[str]]:
        """The text, and those that are compared with it."""

    def inputs(self) -> int:
        return 1 + len(self.compared()[1])

    @abstractmethod
    def answer(self, result: Scores) -> Json: ...


class Score(Compare):
    """How alike a text is to another, or to each of several (vLLM's)."""

    text_1: str
    text_2: str | Annotated[list[str], Field(min_length=1)]

    def compared(self) -> tuple[str, list[str]]:
        return self.text_1, [self.text_2] if isinstance(self.text_2, str) else self.text_2

    def answer(self, result: Scores) -> Json:
        data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(result.values)]
        return {"object": "list", "data": data, "model": self.model, "usage": usage(result.tokens)}


class Rerank(Compare):
    """Documents in the order in which they fit a query (Jina's and Cohere's)."""

    query: str
    documents: Annotated[list[str], Field(min_length=1)]
    top_n: PositiveInt | None = None
    return_documents: bool = True

    def compared(self) -> tuple[str, list[str]]:
        return self.query, self.documents

    def answer(self, result: Scores) -> Json:
        ranked = sorted(enumerate(result.values), key=lambda found: -found[1])[: self.top_n]
        results = [
            {"index": index, "relevance_score": score} | ({"document": {"text": self.documents[index]}} if self.return_documents else {})
            for index, score in ranked
        ]
        return {"model": self.model, "results": results, "usage": usage(result.tokens)}

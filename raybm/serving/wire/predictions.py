"""POST /v1/classify and /v1/images/classify, ours: what models predict of texts, rows and pictures."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any

from pydantic import Field

from raybm.serving.wire.base import Json, Wire, usage

Cell = str | int | float | bool | list[str] | list[float] | None
Row = dict[str, Cell]
Picture = Annotated[str, Field(pattern=r"^data:image/[A-Za-z0-9.+-]+;base64,")]


class Predict(Wire, ABC):
    @abstractmethod
    def rows(self) -> list[Json]:
        """Of the model's inputs."""

    def inputs(self) -> int:
        return len(self.rows())

    def answer(self, rows: list[Json]) -> Json:
        data = [
            {"index": index, **{name: _sayable(value) for name, value in row.items() if name != "tokens"}} for index, row in enumerate(rows)
        ]
        return {"object": "list", "data": data, "model": self.model, "usage": usage(sum(row.get("tokens", 0) for row in rows))}


def _sayable(value: Any) -> Any:
    """JSON knows neither NaN nor infinity, which an extreme number in a row can lead to: null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _sayable(one) for key, one in value.items()}
    return [_sayable(one) for one in value] if isinstance(value, list) else value


class Classify(Predict):
    """What a model predicts of texts or rows: of a classifier the label, its score and every label's score."""

    input: str | Row | Annotated[list[str | Row], Field(min_length=1)]
    """A text, or a row of what the model takes, such as {"question", "context"}, {"tokens"} or a table's columns; or several."""

    def rows(self) -> list[Json]:
        given = self.input if isinstance(self.input, list) else [self.input]
        return [{"text": row} if isinstance(row, str) else row for row in given]


class ClassifyImages(Predict):
    """The labels of pictures, with every label's score."""

    input: Picture | Annotated[list[Picture], Field(min_length=1)]
    """A picture as a data URL (data:image/png;base64,…), or several. Nothing is fetched from anywhere."""

    def rows(self) -> list[Json]:
        return [{"image": url} for url in ([self.input] if isinstance(self.input, str) else self.input)]

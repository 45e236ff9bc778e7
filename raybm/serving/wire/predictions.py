"""What models predict of rows."""

from __future__ import annotations

from raybm.serving.wire.base import Inputs, Json, usage


class Classify(Inputs):
    """POST /v1/classify, ours: {model, input} → per input what the model predicts: of a classifier its label, the label's score and
    every label's score."""

    def answer(self, rows: list[Json]) -> Json:
        data = [{"index": index, **{name: value for name, value in row.items() if name != "tokens"}} for index, row in enumerate(rows)]
        return {"object": "list", "data": data, "model": self.model, "usage": usage(sum(row.get("tokens", 0) for row in rows))}

"""What every kind of model that predicts gives at /v1/classify and /v1/images/classify."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybm.engines.protocol import Embeddings
from raybm.engines.transformers.engine import build
from raybm.engines.transformers.spec import Transformers
from raybm.serving.unsupported import cannot
from raybm.serving.wire.answers import PredictAnswer
from tests.engines import tiny
from tests.fakes import LengthClassifier, LocalModel
from tests.pictures import url
from tests.serving.gateway import ask, make_app, refusal

QUESTION = {"question": "who jumps", "context": "the quick brown fox jumps"}


def classified(models: dict[str, Any], given: Any, path: str = "/v1/classify") -> list[dict[str, Any]]:
    response = ask(make_app(models=models), "POST", path, json={"model": "m", "input": given})
    assert response.status_code == 200, response.text
    PredictAnswer.model_validate(response.json())
    rows: list[dict[str, Any]] = response.json()["data"]
    assert [row.pop("index") for row in rows] == list(range(len(rows))) and all("tokens" not in row for row in rows)
    return rows


@pytest.mark.parametrize(
    ("make", "rows", "keys"),
    [
        (tiny.classifier, ["the dog", {"text": "fox"}], {"label", "score", "scores"}),
        (tiny.tagger, {"tokens": ["the", "dog"]}, {"tags"}),
        (tiny.reader, [QUESTION, QUESTION], {"answer", "score", "start", "end"}),
        (tiny.filler, "the [MASK] dog", {"fills", "scores"}),
        (tiny.image_text, [{"text": "the dog"}, {"image": url(1)}], {"embedding"}),
    ],
)
def test_rows_of_every_kind(make: Callable[[Path], Path], rows: Any, keys: set[str], tmp_path: Path) -> None:
    engine = build(Transformers(), make(tmp_path))
    answers = classified({"m": LocalModel(engine)}, rows)
    assert len(answers) == (len(rows) if isinstance(rows, list) else 1) and all(set(answer) == keys for answer in answers)
    wrong = ask(make_app(models={"m": LocalModel(engine)}), "POST", "/v1/classify", json={"model": "m", "input": {"nothing": 1}})
    refusal(wrong, 400, "invalid_request")
    engine.close()


def test_pictures(tmp_path: Path) -> None:
    engine = build(Transformers(), tiny.image_classifier(tmp_path))
    models = {"m": LocalModel(engine)}
    (answer,) = classified(models, url(1), "/v1/images/classify")
    assert answer["label"] in ("cat", "dog") and set(answer["scores"]) == {"cat", "dog"}
    assert classified(models, [url(1)] * 3, "/v1/images/classify") == [answer] * 3
    app = make_app(models=models)
    for broken in ("data:image/png;base64,iVBORw0KGgo=", "data:image/png;base64,", "data:image/png;base64,$$$"):
        refusal(ask(app, "POST", "/v1/images/classify", json={"model": "m", "input": broken}), 400, "invalid_request")
    engine.close()


def test_numbers_that_json_has_not_are_null() -> None:
    class Extreme(LengthClassifier):
        def predict(self, rows: Any) -> list[dict[str, Any]]:
            return [{"value": math.inf, "scores": {"a": math.nan, "b": 0.5}} for _ in rows]

    assert classified({"m": LocalModel(Extreme())}, {"age": 1e300}) == [{"value": None, "scores": {"a": None, "b": 0.5}}]


def test_a_cross_encoder_ranks(tmp_path: Path) -> None:
    engine = build(Transformers(precision="fp32"), tiny.cross_encoder(tmp_path))
    app, documents = make_app(models={"m": LocalModel(engine)}), ["lazy dog", "fox", "the quick brown fox"]
    rows = classified({"m": LocalModel(engine)}, [{"text": "fox", "text_pair": document} for document in documents])
    expected = [1 / (1 + math.exp(-row["value"])) for row in rows]
    scores = ask(app, "POST", "/v1/score", json={"model": "m", "text_1": "fox", "text_2": documents}).json()
    assert [row["score"] for row in scores["data"]] == pytest.approx(expected, abs=1e-5)
    ranked = ask(app, "POST", "/v1/rerank", json={"model": "m", "query": "fox", "documents": documents, "top_n": 2}).json()
    assert [row["index"] for row in ranked["results"]] == sorted(range(3), key=lambda index: -expected[index])[:2]
    assert ranked["usage"] == scores["usage"] and ranked["usage"]["prompt_tokens"] > 0
    told = str(cannot("m", engine.signature, "embeds"))
    assert "does not answer /v1/embeddings." in told and "/v1/classify and /v1/images/classify and /v1/score and /v1/rerank." in told
    engine.close()


def test_a_number_that_is_no_score_of_pairs(tmp_path: Path) -> None:
    """What a regressor tells of one text has another scale."""
    engine = build(Transformers(), tiny.regressor(tmp_path))
    app, body = make_app(models={"m": LocalModel(engine)}), {"model": "m", "text_1": "fox", "text_2": "dog"}
    refusal(ask(app, "POST", "/v1/score", json=body), 400, "unsupported_by_model")
    engine.close()


def test_scores_and_vectors_that_are_no_numbers() -> None:
    class Broken(LengthClassifier):
        def embed(self, texts: Any) -> Embeddings:
            return Embeddings(np.full((len(texts), 2), np.nan, np.float32), (1,) * len(texts))

    app = make_app(models={"m": LocalModel(Broken())})
    refusal(ask(app, "POST", "/v1/rerank", json={"model": "m", "query": "a", "documents": ["b"]}), 500, "internal_error")
    for format in ("float", "base64"):
        body = {"model": "m", "input": "a", "encoding_format": format}
        refusal(ask(app, "POST", "/v1/embeddings", json=body), 500, "internal_error")

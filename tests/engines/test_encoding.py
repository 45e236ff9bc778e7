from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raybm.core.errors import RaybmError, Unsupported, UserError
from raybm.engines.encoders.encoding import Classifier, Embedder
from raybm.engines.transformers.engine import build
from raybm.engines.transformers.spec import Transformers
from tests.engines import tiny

TEXTS = ["fox", "the quick brown fox jumps over the lazy dog", "", "dog over fox", "the " * 100]
SPEC = Transformers(max_batch=2, precision="fp32")


def pooling(folder: Path, mode: str, normalize: bool) -> Path:
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * normalize
    modules = [
        {"idx": i, "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {
        f"pooling_mode_{name}": name == mode for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken", "weightedmean_tokens")
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    return folder


def test_classification_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    engine = build(SPEC, tiny.classifier(tmp_path))
    assert isinstance(engine, Classifier)
    together = engine.predict([{"text": text} for text in TEXTS])
    for text, answer in zip(TEXTS, together, strict=True):
        inputs = engine.tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        with torch.inference_mode():
            shares = torch.softmax(engine.model(**inputs).logits[0], -1)
        assert list(answer["scores"]) == ["bad", "good", "so-so"]
        assert np.allclose(list(answer["scores"].values()), shares.tolist(), atol=1e-5)
        assert answer["score"] == max(answer["scores"].values()) == answer["scores"][answer["label"]]
        assert answer["tokens"] == inputs.input_ids.shape[1]


def test_rows_of_a_batch_are_of_like_length(tmp_path: Path) -> None:
    """Padding costs a CPU what text costs."""
    engine = build(Transformers(max_batch=4), tiny.classifier(tmp_path))
    assert isinstance(engine, Classifier)
    lengths = [3, 10, 30, 9, 29, 8, 31, 28, 27, 3]
    batches = [places for places, _ in engine.padded([{"input_ids": [5] * length} for length in lengths])]
    assert [[lengths[place] for place in places] for places in batches] == [[31, 30, 29, 28], [27], [10, 9, 8], [3, 3]]


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "max_tokens", "lasttoken"])
def test_pooling_is_the_models_own(tmp_path: Path, mode: str, padding: str) -> None:
    folder = pooling(tiny.embedder(tmp_path), mode, normalize=False)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": padding}))
    engine = build(SPEC, folder)
    assert isinstance(engine, Embedder)
    result = engine.embed(TEXTS)
    for text, vector, tokens in zip(TEXTS, result.vectors, result.tokens, strict=True):
        inputs = engine.tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        with torch.inference_mode():
            hidden = engine.model(**inputs).last_hidden_state[0]
        expected = {"mean_tokens": hidden.mean(0), "cls_token": hidden[0], "max_tokens": hidden.amax(0), "lasttoken": hidden[-1]}[mode]
        assert np.allclose(vector, expected.numpy(), atol=1e-5)
        assert tokens == len(hidden)


def test_vectors_have_unit_length_when_the_model_says_so(tmp_path: Path) -> None:
    tiny.embedder(tmp_path)
    for folder in (tmp_path, pooling(tmp_path, "mean_tokens", normalize=True)):
        vectors = build(SPEC, folder).embed(TEXTS).vectors  # type: ignore[union-attr]
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_other_pooling_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="weightedmean"):
        build(SPEC, pooling(tiny.embedder(tmp_path / "embedder"), "weightedmean_tokens", normalize=True))


def test_a_row_without_text_is_named(tmp_path: Path) -> None:
    engine = build(SPEC, tiny.classifier(tmp_path))
    with pytest.raises(UserError, match="row 1 has no text"):
        engine.predict([{"text": "fox"}, {"label": "x"}])  # type: ignore[union-attr]
    engine.close()
    with pytest.raises(RaybmError, match="closed"):
        engine.predict([{"text": "fox"}])  # type: ignore[union-attr]


@pytest.mark.parametrize("make", [tiny.classifier, tiny.regressor])
def test_pairs_of_texts_beside_texts(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    engine: Any = build(SPEC, make(tmp_path))
    rows = [{"text": "fox", "text_pair": "dog over fox"}, {"text": "fox"}, {"text": "lazy dog", "text_pair": "jumps"}]
    rows.append({"text": "the " * 10, "text_pair": "fox " * 100})
    for row, answer in zip(rows, engine.predict(rows), strict=True):
        inputs = engine.tokenizer(*row.values(), truncation=True, max_length=32, return_tensors="pt")
        with torch.inference_mode():
            logits = engine.model(**inputs).logits[0]
        found = [answer["value"]] if "value" in answer else list(answer["scores"].values())
        assert np.allclose(found, (logits if "value" in answer else torch.softmax(logits, -1)).tolist(), atol=1e-5)
        assert answer["tokens"] == inputs.input_ids.shape[1]
    with pytest.raises(UserError, match=r"text_pair: row 0 has \['fox'\]"):
        engine.predict([{"text": "fox", "text_pair": ["fox"]}])

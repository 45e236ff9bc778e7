from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from raybm.core.errors import RaybmError, UserError
from raybm.core.signature import FILE
from raybm.engines.encoders.vision import ImageClassifier
from raybm.engines.protocol import Embeds, Predicts
from raybm.engines.transformers.engine import build
from raybm.engines.transformers.spec import Transformers
from raybm.models.images import ImageProcessor
from raybm.models.signature import infer_signature
from tests.engines import tiny
from tests.pictures import noise, url

SPEC = Transformers(max_batch=2, precision="fp32")


def test_pictures_are_classified_in_order(tmp_path: Path) -> None:
    engine = build(SPEC, tiny.image_classifier(tmp_path))
    assert isinstance(engine, ImageClassifier)
    answers = engine.predict([{"image": url(i)} for i in range(5)])
    for number, answer in enumerate(answers):
        with torch.inference_mode():
            pixels = ImageProcessor.from_pretrained(tmp_path)([noise(number)])
            shares = torch.softmax(engine.model(pixel_values=pixels).logits[0], -1)
        assert np.allclose(list(answer["scores"].values()), shares.tolist(), atol=1e-5)
        assert answer["score"] == answer["scores"][answer["label"]] == max(answer["scores"].values())
    assert engine.predict([]) == []
    for wrong in ({"text": "x"}, {"image": "x.png"}, {"image": "data:image/png;base64,AAAA"}):
        with pytest.raises(UserError, match="row 1"):
            engine.predict([{"image": url(0)}, wrong])
    engine.close()
    with pytest.raises(RaybmError, match="closed"):
        engine.predict([{"image": url(0)}])


def test_texts_and_pictures_have_vectors_in_one_space(tmp_path: Path) -> None:
    engine = build(SPEC, tiny.image_text(tmp_path))
    assert isinstance(engine, Embeds) and isinstance(engine, Predicts)
    rows = [{"text": "the dog " * 9}, {"image": url(0)}, {"text": "fox"}, {"image": url(1)}, {"text": ""}]
    vectors = [answer["embedding"] for answer in engine.predict(rows)]
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for row, vector in zip(rows, vectors, strict=True):
        assert np.allclose(engine.predict([row])[0]["embedding"], vector, atol=1e-5)
        assert np.allclose(engine.embed([*row.values()]).vectors[0], vector, atol=1e-5)
    with pytest.raises(UserError, match="neither"):
        engine.predict([{"label": "x"}])


def test_folders_of_others_are_known_by_their_config(tmp_path: Path) -> None:
    for make in (tiny.image_classifier, tiny.image_text):
        folder = make(tmp_path / make.__name__)
        own = infer_signature(folder)
        (folder / FILE).unlink()
        assert infer_signature(folder).model_copy(update={"max_length": own.max_length}) == own
    assert infer_signature(tmp_path / "image_text").max_length == 16
    assert json.loads((tmp_path / "image_text" / "preprocessor_config.json").read_text())["size"] == {"height": 16, "width": 16}

from __future__ import annotations

from typing import Any

import pytest
import torch

from raybm.core.errors import Unsupported
from raybm.models.image_text import ImageTextProcessor
from raybm.models.images import ImageProcessor
from raybm.tasks.image_text.spec import ImageText
from raybm.tasks.image_text.task import ImageTextTask
from tests.engines import tiny
from tests.pictures import url

TASK = ImageTextTask(ImageText())
PROCESSOR = ImageTextProcessor(tiny.chat_tokenizer(), ImageProcessor(16, 16, (0.5,) * 3, (0.5,) * 3))


def batch(*texts: str) -> dict[str, torch.Tensor]:
    rows = [{"image": url(i), "text": text} for i, text in enumerate(texts)]
    return TASK.collate(TASK.encode(rows, PROCESSOR, (), 8), PROCESSOR)


def test_texts_end_with_the_token_that_their_vector_is_taken_at() -> None:
    ids = batch("fox", "the quick brown fox jumps over the lazy dog")["input_ids"]
    end = PROCESSOR.tokenizer.eos_token_id
    assert ids.shape[1] == 8
    assert [int((row == end).nonzero()[0]) for row in ids][1] == 7


def test_pairs_with_the_same_text_are_no_wrong_answers() -> None:
    model: Any = TASK.model(None, tiny.CLIP, (), PROCESSOR).eval()
    twice = batch("fox", "dog", "fox")
    with torch.no_grad():
        cosines = model(**{name: twice[name] for name in ("input_ids", "attention_mask", "pixel_values")}).logits_per_image.clone()
        loss = TASK.loss(model, twice)
    cosines[0, 2] = cosines[2, 0] = -torch.inf  # both of a fox
    expected = sum(torch.nn.functional.cross_entropy(side, torch.arange(3), reduction="sum") for side in (cosines, cosines.T)) / 2
    assert float(loss.total) == pytest.approx(float(expected), rel=1e-5)


def test_recall_looks_among_distinct_texts() -> None:
    rows = [{"image": image, "text": text} for image, text in (("1", "fox"), ("2", "dog"), ("3", "fox"))]
    fox, dog = [1.0, 0.0], [0.0, 1.0]
    scores = TASK.score([{"image": image, "text": text} for image, text in ((fox, fox), (fox, dog), (dog, fox))], rows, ())
    assert scores["texts"] == 2
    assert scores["image_to_text_recall_at_1"] == pytest.approx(1 / 3)  # only the first picture lies at its text
    assert scores["text_to_image_recall_at_1"] == pytest.approx(1 / 2)  # "dog" finds the picture of a fox
    assert scores["image_to_text_recall_at_5"] == scores["text_to_image_recall_at_5"] == 1


def test_each_of_a_pictures_captions_is_right() -> None:
    rows = [{"image": image, "text": text} for image, text in (("1", "a"), ("1", "b"), ("2", "c"), ("2", "d"))]
    one, two = [1.0, 0.0], [0.0, 1.0]
    sides = ((one, one), (one, [0.8, 0.6]), (two, two), (two, [0.6, 0.8]))
    vectors = [{"image": image, "text": text} for image, text in sides]
    scores = TASK.score(vectors, rows, ())
    assert scores["image_to_text_recall_at_1"] == scores["text_to_image_recall_at_1"] == 1


def test_pairs_with_the_same_picture_are_no_wrong_answers() -> None:
    rows = [{"image": url(i // 2), "text": text} for i, text in enumerate(("fox", "dog", "the", "over"))]
    batch = TASK.collate(TASK.encode(rows, PROCESSOR, (), 8), PROCESSOR)
    model: Any = TASK.model(None, tiny.CLIP, (), PROCESSOR).eval()
    with torch.no_grad():
        cosines = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}).logits_per_image.clone()
        loss = TASK.loss(model, batch)
    for one, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        cosines[one, other] = -torch.inf
    expected = sum(torch.nn.functional.cross_entropy(side, torch.arange(4), reduction="sum") for side in (cosines, cosines.T)) / 2
    assert float(loss.total) == pytest.approx(float(expected), rel=1e-5)


def test_the_linear_baseline_finds_what_it_has_seen() -> None:
    rows = [{"image": url(i), "text": text} for i, text in enumerate(("a red fox", "a lazy dog", "birds at dawn", "rain"))]
    predict = TASK.baseline(rows, (), 0)
    assert predict is not None
    assert TASK.score(predict(rows), rows, ())["image_to_text_recall_at_1"] >= 0.75


def test_a_model_of_texts_alone_is_refused() -> None:
    with pytest.raises(Unsupported, match="clip"):
        TASK.model(
            None,
            {
                "model_type": "bert",
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "vocab_size": 9,
            },
            (),
            PROCESSOR,
        )

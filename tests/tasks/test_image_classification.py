from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from raybm.models import dataurl
from raybm.models.images import ImageProcessor
from raybm.tasks.image_classification.augment import augment
from raybm.tasks.image_classification.spec import Augment, ImageClassification
from raybm.tasks.image_classification.task import ImageClassificationTask
from tests.pictures import png, url

PROCESSOR = ImageProcessor(16, 16, (0.5,) * 3, (0.5,) * 3)
LABELS = ("a", "b")
MODELS: dict[str, dict[str, Any]] = {
    "raybm_cnn": {"widths": [8]},
    "vit": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]},
}


def task(**settings: Any) -> ImageClassificationTask:
    return ImageClassificationTask(ImageClassification(**settings))


def encoded(count: int) -> list[dict[str, Any]]:
    return task().encode([{"image": url(i), "label": "ab"[i % 2]} for i in range(count)], PROCESSOR, LABELS, 2)


@pytest.mark.parametrize("kind", MODELS)
def test_each_architecture_learns_from_batches_of_any_size(kind: str) -> None:
    model = task().model(None, {"model_type": kind, **MODELS[kind]}, LABELS, PROCESSOR).train()
    for count in (3, 1, 0):  # of one row, a batch norm would have no variance
        batch = task().collate(encoded(count), PROCESSOR, 1)
        loss = task().loss(model, batch)
        loss.total.backward()
        assert int(task().units(batch)) == count
        assert torch.isfinite(loss.total)


def test_rows_that_cannot_be_used_say_why() -> None:
    rows = [{"image": "data:image/png;base64,AAAA", "label": "a"}, {"image": "x.png", "label": "a"}, {"image": url(0), "label": "c"}]
    reasons = [row["_bad"] for row in task().encode(rows, PROCESSOR, LABELS, 2)]
    assert ["known format" in reasons[0], "data URL" in reasons[1], "none of a, b" in reasons[2]] == [True] * 3


def test_training_draws_from_the_seed_and_evaluation_draws_nothing() -> None:
    wild = task(augment=Augment(crop=0.3, flip=True, rotate=30, scale=0.2, colour=0.4, mixup=0.4))
    one, same, other = (wild.collate(encoded(4), PROCESSOR, seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.allclose(one["pixel_values"], other["pixel_values"])
    plain = wild.collate(encoded(4), PROCESSOR)
    assert set(plain) == {"pixel_values", "labels"}
    assert torch.equal(plain["pixel_values"], task().collate(encoded(4), PROCESSOR, 1)["pixel_values"])


def test_each_change_is_what_it_says() -> None:
    pixels = torch.arange(16.0).view(1, 1, 4, 4).repeat(64, 1, 1, 1) / 16

    def changed(**settings: Any) -> torch.Tensor:
        return augment(pixels, Augment(**settings), np.random.default_rng(0))

    mirrored = [bool(torch.allclose(picture, pixels[0].flip(-1), atol=1e-5)) for picture in changed(flip=True)]
    assert 16 < sum(mirrored) < 48
    assert all(m or torch.allclose(picture, pixels[0], atol=1e-5) for m, picture in zip(mirrored, changed(flip=True), strict=True))
    assert changed(crop=0.5).amin() >= pixels.amin() - 1e-5
    assert changed(crop=0.5).std((2, 3)).mean() < pixels.std((2, 3)).mean()  # of a slope, a part has fewer greys
    assert changed(colour=0.5).amax() <= 1
    dot = torch.zeros(64, 1, 9, 9)
    dot[:, :, 4, 4] = 1
    turned = augment(dot, Augment(rotate=90, scale=0.3), np.random.default_rng(0))
    assert bool((turned.view(64, -1).argmax(1) == 40).all())  # the middle stays where it is


def test_mixup_counts_for_both_labels_and_smoothing_only_in_training() -> None:
    mixed = task(augment=Augment(mixup=0.5), label_smoothing=0.2)
    model = mixed.model(None, {"model_type": "raybm_cnn", **MODELS["raybm_cnn"]}, LABELS, PROCESSOR).eval()
    batch = mixed.collate(encoded(4), PROCESSOR, 3)
    share = float(batch["share"])
    with torch.inference_mode():
        logits = model(pixel_values=batch["pixel_values"]).logits
        first, second = (
            float(torch.nn.functional.cross_entropy(logits, batch[name], reduction="sum")) for name in ("labels", "other_labels")
        )
        expected = pytest.approx(share * first + (1 - share) * second, rel=1e-5)
        assert float(mixed.loss(model, batch).total) == expected
        assert float(mixed.loss(model.train(), batch).total) != expected


def test_the_baseline_learns_what_pixels_tell() -> None:
    def row(number: int) -> dict[str, Any]:
        return {"image": dataurl.encode(png(np.full((8, 8), 20 if number % 2 else 200))), "label": "ab"[number % 2]}

    predict = task().baseline([row(i) for i in range(10)], LABELS, 0)
    assert predict is not None
    assert task().score(predict([row(i) for i in range(4)]), [row(i) for i in range(4)], LABELS)["accuracy"] == 1

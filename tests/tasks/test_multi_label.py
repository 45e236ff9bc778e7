from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from raybm.core.errors import SpecError
from raybm.engines.transformers.spec import Transformers
from raybm.tasks import TextClassification
from tests.engines import tiny

LABELS = ("animal", "quick", "slow")
ROWS = [
    {"text": "the quick fox", "labels": ["animal", "quick"]},
    {"text": "over", "labels": []},
    {"text": "the lazy dog", "labels": ["slow", "animal"]},
    {"text": "lazy", "labels": ["slow"]},
]
CONFIG = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SPEC = TextClassification(multi_label=True)


def test_loss_labels_and_engine_agree(tmp_path: Path) -> None:
    task, tokenizer = SPEC.build(), tiny.text_tokenizer()
    encoded = task.encode(ROWS, tokenizer, LABELS, 32)
    assert [row["wanted"] for row in encoded] == [[1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 1]]
    assert "none of animal" in task.encode([{"text": "x", "labels": ["green"]}], tokenizer, LABELS, 32)[0]["_bad"]
    torch.manual_seed(0)
    model = task.model(None, CONFIG, LABELS, tokenizer).eval()
    whole = task.collate(encoded, tokenizer)
    alone = [task.loss(model, task.collate([row], tokenizer)) for row in encoded]
    together = task.loss(model, whole)
    assert together.total.item() == pytest.approx(sum(loss.total.item() for loss in alone), rel=1e-5)
    empty = task.collate([], tokenizer)
    assert int(task.units(whole)) == 4 and int(task.units(empty)) == 0 and float(task.loss(model, empty).total.detach()) == 0

    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    task.signature(LABELS, 32).write(tmp_path)
    made = task.predict(ROWS, Transformers().build(tmp_path).predict)
    assert all(one["labels"] == [label for label in LABELS if one["scores"][label] >= 0.5] for one in made)
    assert together.correct is not None
    assert int(together.correct) == sum(set(one["labels"]) == set(row["labels"]) for one, row in zip(made, ROWS, strict=True))


def test_scores_and_baseline() -> None:
    task = SPEC.build()
    said = [{"labels": ["animal", "quick"]}, {"labels": []}, {"labels": ["animal"]}, {"labels": ["quick"]}]
    scores = task.score(said, ROWS, LABELS)
    assert scores["subset_accuracy"] == 0.5
    assert scores["micro_precision"] == pytest.approx(3 / 4) and scores["micro_recall"] == pytest.approx(3 / 5)
    assert scores["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert scores["per_class"]["slow"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2}
    baseline = task.baseline(ROWS, LABELS, 0)
    assert baseline is not None and [sorted(one["labels"]) for one in baseline(ROWS)] == [sorted(row["labels"]) for row in ROWS]
    assert set(SPEC.METRICS) <= {*scores, "loss"}


def test_smoothing_is_of_training_only() -> None:
    task, tokenizer = TextClassification(label_smoothing=0.2).build(), tiny.text_tokenizer()
    batch = task.collate(task.encode([{"text": "fox", "label": "a"}], tokenizer, ("a", "b"), 32), tokenizer)
    model = task.model(None, CONFIG | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}, ("a", "b"), tokenizer)
    logits = model.eval()(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    plain, smooth = (-(logits.log_softmax(-1) * torch.tensor(wanted)).sum().item() for wanted in ([1.0, 0.0], [0.9, 0.1]))
    assert task.loss(model, batch).total.item() == pytest.approx(plain, rel=1e-5)
    engine = torch.nn.Module()  # DeepSpeed's has a flag of its own, that stays as it was
    engine.module, engine.forward = model, model.forward  # type: ignore[method-assign]
    assert engine.training and task.loss(engine, batch).total.item() == pytest.approx(plain, rel=1e-5)
    assert task.loss(model.train(), batch).total.item() == pytest.approx(smooth, rel=1e-5)
    with pytest.raises(SpecError):
        TextClassification.parse({"multi_label": True, "label_smoothing": 0.1})


def test_a_new_head_begins_with_one_label_in_so_many_and_a_trained_one_stays(tmp_path: Path) -> None:
    task, tokenizer = SPEC.build(), tiny.text_tokenizer()
    model = task.model(None, CONFIG, LABELS, tokenizer)
    assert model.classifier.bias.tolist() == pytest.approx([-math.log(2)] * 3)
    with torch.no_grad():
        model.classifier.bias[0] = 5.0
    model.save_pretrained(tmp_path)
    assert task.model(tmp_path, {}, LABELS, tokenizer).classifier.bias.tolist() == pytest.approx([5.0, -math.log(2), -math.log(2)])

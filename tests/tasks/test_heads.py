"""What becomes of the head of a model that others trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from raybm.engines.transformers.spec import Transformers
from raybm.tasks import QuestionAnswering, Regression, TextClassification, TokenClassification
from raybm.tasks.classification import averages
from tests.engines import tiny


@pytest.mark.parametrize(
    ("labels", "kept"), [(("bad", "good", "so-so"), True), (("good", "bad", "so-so"), False), (("a", "b", "c"), False)]
)
def test_a_head_is_kept_where_it_tells_the_same(tmp_path: Path, labels: tuple[str, ...], kept: bool) -> None:
    folder = tiny.classifier(tmp_path, labels=("bad", "good", "so-so"))
    before = AutoModelForSequenceClassification.from_pretrained(folder)
    model: Any = TextClassification().build().model(folder, {}, labels, tiny.text_tokenizer())
    assert torch.equal(model.classifier.weight, before.classifier.weight) is kept
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, before.bert.embeddings.word_embeddings.weight)
    assert [model.config.id2label[place] for place in range(3)] == list(labels)


def test_a_tagger_of_other_tags_gets_a_new_head(tmp_path: Path) -> None:
    folder = tiny.tagger(tmp_path)
    tags = ["B-X", "I-X", "O"]
    same, other = (TokenClassification().build().model(folder, {}, told, tiny.text_tokenizer()) for told in (tags, tags[::-1]))
    assert not torch.equal(same.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize("padding", [None, 59])
def test_a_decoder_that_classifies_knows_its_padding(tmp_path: Path, padding: int | None) -> None:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=60, pad_token_id=padding, **shape)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    for task, learnt in ((TextClassification().build(), {}), (Regression().build(), {"target_mean": 0.0, "target_std": 1.0})):
        model: Any = task.model(tmp_path, learnt, ("a", "b"), tiny.text_tokenizer())
        batch = task.collate([{"input_ids": [5, 6, 7], "labels": [1]}, {"input_ids": [5], "labels": [0]}], tiny.text_tokenizer())
        together = task.loss(model.eval(), batch).total
        alone = task.loss(model, task.collate([{"input_ids": [5], "labels": [0]}], tiny.text_tokenizer())).total
        first = task.loss(model, task.collate([{"input_ids": [5, 6, 7], "labels": [1]}], tiny.text_tokenizer())).total
        assert float(together) == pytest.approx(float(alone + first), rel=1e-4)


def test_one_label_of_several_from_a_model_that_told_many(tmp_path: Path) -> None:
    folder = tiny.classifier(tmp_path / "start")
    config = AutoConfig.from_pretrained(folder)
    config.problem_type = "multi_label_classification"
    config.save_pretrained(folder)
    labels, task = ("bad", "good", "so-so"), TextClassification().build()
    task.model(folder, {}, labels, tiny.text_tokenizer()).save_pretrained(tmp_path / "made")
    tiny.text_tokenizer().save_pretrained(tmp_path / "made")
    task.signature(labels, 32).write(tmp_path / "made")
    (answer,) = Transformers().build(tmp_path / "made").predict([{"text": "the fox"}])
    assert answer["label"] in labels


def test_a_classifier_becomes_a_regression_or_a_reader(tmp_path: Path) -> None:
    folder = tiny.classifier(tmp_path)
    number: Any = Regression().build().model(folder, {"target_mean": 0.0, "target_std": 1.0}, (), tiny.text_tokenizer())
    assert number.classifier.out_features == 1
    reader: Any = QuestionAnswering().build().model(folder, {}, (), tiny.text_tokenizer())
    assert reader.qa_outputs.out_features == 2


def test_averages_are_over_the_labels_that_are_there() -> None:
    found = averages(["a", "b"], ["a", "b"], ["a", "b", "c"])
    assert found["macro_f1"] == 1.0 and found["per_class"]["c"]["support"] == 0
    assert averages(["a", "b"], ["a", "c"], ["a", "b", "c"])["macro_f1"] == pytest.approx(1 / 3)

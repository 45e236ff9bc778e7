from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raybm.core.errors import DataError, SpecError, UserError
from raybm.core.signature import Signature
from raybm.engines.transformers.spec import Transformers
from raybm.models import processors
from raybm.models.spec import ModelSpec
from raybm.tasks import Regression
from tests.engines import tiny

ROWS = [{"area": str(area), "town": town, "label": str(100 + 3 * area)} for area in range(10) for town in ("Ulm", "Bonn")]
TABLE = Regression.parse({"features": {"numeric": ["area"], "categorical": ["town"]}})
MLP = {"model_type": "raybm_mlp", "hidden_size": 16}


def built(spec: Regression, rows: list[dict[str, Any]], config: dict[str, Any], processor: Any = None) -> tuple[Any, Any, Any]:
    task = spec.build()
    processor = processor or processors.build(spec.INPUT, ModelSpec(ref="scratch:raybm_mlp"), None, lambda: iter(()))
    learnt = task.learn(processor, lambda: iter(rows))
    torch.manual_seed(0)
    return task, processor, task.model(None, config | learnt, (), processor).eval()


def test_a_tables_columns_become_standardised_numbers_and_places(tmp_path: Path) -> None:
    task, processor, _ = built(TABLE, ROWS, MLP)
    processor.save_pretrained(tmp_path)
    kept = processors.load("columns", tmp_path)
    assert kept == processor
    rows = [
        {"area": "4.5", "town": "Bonn", "label": "1"},
        {"area": "big", "town": "Ulm", "label": "1"},
        {"area": "1", "town": "", "label": "x"},
    ]
    made = task.encode([*rows, {"area": "1", "town": "Rome", "label": "2"}], kept, (), 2)
    assert made[0] == {"numeric": [0.0], "categorical": [1], "labels": [1.0]}
    assert made[1]["_bad"] == "area is 'big', which is no number" and made[2]["_bad"] == "label 'x' is no number"
    assert made[3]["categorical"] == [0]
    assert TABLE.columns() == (("area", "town", "label"),)


@pytest.mark.parametrize("kind", ["table", "text"])
def test_predictions_are_in_the_units_of_the_data(kind: str, tmp_path: Path) -> None:
    spec = TABLE if kind == "table" else Regression()
    rows = ROWS if kind == "table" else [{"text": "fox " * i, "label": str(100 + i)} for i in range(4)]
    text = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config, processor = (MLP, None) if kind == "table" else (text, tiny.text_tokenizer())
    task, processor, model = built(spec, rows, config, processor)
    batch = task.collate(task.encode(rows, processor, (), 32), processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    task.signature((), 32).write(tmp_path)
    engine = Transformers().build(tmp_path)
    predictions = task.predict(rows, engine.predict)
    errors = [(made["value"] - float(row["label"])) / model.config.target_std for made, row in zip(predictions, rows, strict=True)]
    assert task.loss(model, batch).total.item() == pytest.approx(sum(error**2 for error in errors), rel=1e-4)
    assert all(90 < made["value"] < 140 for made in predictions)
    if kind == "table":
        with pytest.raises(UserError, match="row 0"):
            engine.predict([{"area": "many", "town": "Ulm"}])
        assert task.model(tmp_path, {}, (), processor).config.target_mean == pytest.approx(113.5)


def test_scores_and_baseline() -> None:
    task = TABLE.build()
    ridge = task.baseline(ROWS, (), 0)
    assert ridge is not None
    exact = task.score(ridge(ROWS), ROWS, ())
    assert exact["r2"] > 0.999 and exact["rmse"] < 0.1 and exact["spearman"] > 0.999
    mean = task.score([{"value": 113.5}] * len(ROWS), ROWS, ())
    assert mean["r2"] == pytest.approx(0) and mean["mae"] == pytest.approx(7.5) and "spearman" not in mean


def test_targets_that_cannot_be_learnt_are_refused() -> None:
    with pytest.raises(DataError, match="same number"):
        built(TABLE, [row | {"label": "3"} for row in ROWS], MLP)
    with pytest.raises(SpecError):
        Regression.parse({"features": {"numeric": ["label"]}})


def test_a_foreign_model_with_one_output_is_a_regression(tmp_path: Path) -> None:
    tiny.classifier(tmp_path, labels=("rating",))
    (tmp_path / "signature.json").unlink()
    engine = Transformers().build(tmp_path)
    assert (engine.signature.problem, engine.signature.outputs) == ("regression", ("value",))
    assert isinstance(Signature.read(tmp_path), type(None))
    assert [set(made) for made in engine.predict([{"text": "fox"}])] == [{"value", "tokens"}]


@pytest.mark.parametrize("wrong", [{"label": "nan"}, {"label": "inf"}, {"area": "nan"}, {"area": "-inf"}])
def test_what_is_no_number_is_a_bad_row(wrong: dict[str, Any]) -> None:
    task, processor, _ = built(TABLE, ROWS, MLP)
    (made,) = task.encode([ROWS[0] | wrong], processor, (), 32)
    assert next(iter(wrong)) in made["_bad"] and next(iter(wrong.values())) in made["_bad"]


def test_far_targets_weigh_less_with_huber() -> None:
    """Beyond one standard deviation the loss is a line (Huber 1964)."""
    losses = {}
    for name in ("squared", "huber"):
        task, processor, model = built(TABLE.model_copy(update={"loss": name}), ROWS, MLP)
        batch = task.collate(task.encode([ROWS[0] | {"label": "1000"}], processor, (), 32), processor)
        losses[name] = float(task.loss(model, batch).total.detach())
    assert losses["huber"] == pytest.approx(losses["squared"] ** 0.5 - 0.5, rel=1e-3)

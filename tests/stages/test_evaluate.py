from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raybm.core.artifact import Artifact
from raybm.core.context import Context
from raybm.core.errors import DataError
from raybm.core.events import Events
from raybm.core.storage import open_storage
from raybm.spec.job import Resources
from raybm.stages.evaluate import Evaluator, Tally, View, _passes, _scores, _some_rows, run
from tests.engines import tiny

LABELS = ("bad", "good", "so-so")
TRAIN = [
    {"text": f"{word} fox {i}", "label": label} for i in range(6) for word, label in (("lazy", "bad"), ("quick", "good"), ("今", "so-so"))
]
TEST = [
    {"text": f"the {word} dog", "label": label} for word, label in (("quick", "good"), ("lazy", "bad"), ("今天", "so-so"), ("fox", "bad"))
]


def write(artifact: Artifact, key: str, rows: list[dict[str, Any]]) -> None:
    path = Path(artifact.storage.uri) / key
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture
def classification(tmp_path: Path) -> tuple[View, dict[str, Artifact], Artifact, Context]:
    view = View.parse({"seed": 3, "task": {"kind": "text_classification"}, "model": {"ref": "package:x"}, "evaluate": {"batch": 2}})
    inputs, out, context = stages(tmp_path, tiny.classifier, LABELS)
    splits = {"train": TRAIN, "test": TEST, "slice-far": TEST[:2]}
    finish(view, inputs["prepare"], splits, LABELS)
    return view, inputs, out, context


@pytest.fixture
def language(tmp_path: Path) -> tuple[View, dict[str, Artifact], Artifact, Context]:
    view = View.parse({"seed": 3, "task": {"kind": "causal_lm"}, "model": {"ref": "package:x"}, "evaluate": {}})
    inputs, out, context = stages(tmp_path, tiny.language_model, ())
    finish(view, inputs["prepare"], {"test": [{"text": row["text"]} for row in TRAIN]}, ())
    return view, inputs, out, context


def stages(tmp_path: Path, model: Callable[[Path], Path], labels: tuple[str, ...]) -> tuple[dict[str, Artifact], Artifact, Context]:
    storage = open_storage(str(tmp_path))
    inputs = {name: Artifact(storage.at(name), name, "k") for name in ("prepare", "train")}
    model(tmp_path / "train" / "model")
    (tiny.text_tokenizer() if labels else tiny.chat_tokenizer()).save_pretrained(tmp_path / "prepare" / "processor")
    told: list[str] = []
    context = Context({}, "job", storage, Resources(workers=1), tmp_path, Events(tmp_path / "run"), told.append)
    return inputs, Artifact(storage.at("evaluate"), "evaluate", "k"), context


def finish(view: View, prepared: Artifact, splits: dict[str, list[dict[str, Any]]], labels: tuple[str, ...]) -> None:
    """What prepare leaves behind."""
    tokenizer = tiny.text_tokenizer() if labels else tiny.chat_tokenizer()
    task = view.task.build()
    for split, rows in splits.items():
        write(prepared, f"rows/{split}/0-0.parquet", rows)
        write(prepared, f"encoded/{split}/0-0.parquet", task.pack(task.encode(rows, tokenizer, labels, 32), 32))
    made = {"labels": list(labels), "rows": {split: len(rows) for split, rows in splits.items()}}
    prepared.storage.write("dataset.json", json.dumps(made).encode())


def reports(evaluator: Evaluator, *item: str) -> list[dict[str, Any]]:
    return [json.loads(report) for made in evaluator(pa.table({"item": [json.dumps(item)]})) for report in made["report"]]


def test_the_loss_is_the_tasks_and_the_predictions_the_engines(classification: Any) -> None:
    view, inputs, *_ = classification
    evaluator = Evaluator(view.canonical(), inputs["prepare"], inputs["train"], LABELS)
    passes = reports(evaluator, "loss", "test", "encoded/test/0-0.parquet")
    sums = {name: sum(report[name] for report in passes) for name in ("loss", "correct", "units")}
    [predicted] = reports(evaluator, "predict", "test", "rows/test/0-0.parquet")
    assert predicted["rows"] == TEST and sums["units"] == len(TEST)
    likelihood = [answer["scores"][row["label"]] for answer, row in zip(predicted["predictions"], TEST, strict=True)]
    assert sums["loss"] == pytest.approx(-float(torch.tensor(likelihood).log().sum()), rel=1e-4)
    assert sums["correct"] == sum(answer["label"] == row["label"] for answer, row in zip(predicted["predictions"], TEST, strict=True))


def test_loss_passes_keep_within_rows_and_tokens() -> None:
    rows = [{"input_ids": [0] * length} for length in (3000, 10, 900, 900, 900, *range(1, 100))]
    passes = list(_passes(rows, 8))
    assert sorted(len(row["input_ids"]) for part in passes for row in part) == sorted(len(row["input_ids"]) for row in rows)
    assert all(len(part) <= 8 and (len(part) == 1 or len(part) * max(len(r["input_ids"]) for r in part) <= 2048) for part in passes)


def test_the_longest_sequence_of_a_row_counts() -> None:
    rows = [{"input_ids": [0] * 10, "labels": [0] * 500} for _ in range(20)]
    assert max(map(len, _passes(rows, 64))) == 4


def test_a_simple_model_sees_some_of_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(str(tmp_path))
    for part in range(3):
        data = io.BytesIO()
        pq.write_table(pa.table({"text": [f"{part}-{row}" for row in range(10)]}), data)
        storage.write(f"rows/train/{part}.parquet", data.getvalue())
    assert len(_some_rows(storage, 1)) == 30
    monkeypatch.setattr("raybm.stages.evaluate.BASELINE_ROWS", 7)
    few = [row["text"] for row in _some_rows(storage, 1)]
    assert len(set(few)) == 7 and few == sorted(few) and few == [row["text"] for row in _some_rows(storage, 1)]
    monkeypatch.setattr("raybm.stages.evaluate.BASELINE_BYTES", 1)
    assert len(_some_rows(storage, 1)) == 1


@pytest.mark.integration
def test_a_classifier_is_scored_on_test_and_slices_beside_a_baseline(ray_session: Any, classification: Any) -> None:
    view, inputs, out, context = classification
    metrics = run(view, inputs, out, context)
    result = json.loads(out.storage.read("evaluation.json"))
    assert result["test"]["rows"] == 4 and result["slices"]["far"]["rows"] == 2
    assert {"loss", "accuracy", "macro_f1", "per_class", "confusion", "labels"} <= set(result["test"])
    assert 0 < metrics["latency_ms"] == result["test"]["latency_ms"] < 5000 and "latency_ms" not in result["slices"]["far"]
    assert result["baseline"]["test"]["accuracy"] == 0.75 and set(result["baseline"]["slices"]) == {"far"}
    assert metrics["macro_f1"] == result["test"]["macro_f1"] and metrics["slices"]["far"]["rows"] == 2
    table = pq.read_table(Path(out.storage.uri) / "predictions.parquet").to_pylist()
    assert [row["text"] for row in table] == [row["text"] for row in [*TEST, *TEST[:2]]]
    assert sum(row["predicted_label"] == row["label"] for row in table[:4]) == 4 * result["test"]["accuracy"]


def test_a_language_model_has_loss_and_perplexity(language: Any) -> None:
    view, inputs, *_ = language
    evaluator, tally = Evaluator(view.canonical(), inputs["prepare"], inputs["train"], ()), Tally()
    for report in reports(evaluator, "loss", "test", "encoded/test/0-0.parquet"):
        tally.add(report)
    scores = _scores(evaluator.task, ("loss", "perplexity", "token_accuracy"), tally, (), len(TRAIN))
    assert scores["rows"] == len(TRAIN) and scores["tokens"] > 100 and 0 <= scores["token_accuracy"] <= 1
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))


def test_without_a_test_split_it_says_so(language: Any) -> None:
    view, inputs, out, context = language
    finish(view, inputs["prepare"], {"train": TRAIN}, ())
    with pytest.raises(DataError, match="no test split"):
        run(view, inputs, out, context)

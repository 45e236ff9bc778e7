from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from raybm.core.artifact import Artifact, Record
from raybm.core.context import Context
from raybm.core.errors import GateRefused
from raybm.core.events import Events
from raybm.core.registry import Registry
from raybm.core.signature import Signature
from raybm.core.storage import Storage, open_storage
from raybm.spec.job import JobSpec, PublishSpec
from raybm.stages import publish

SCORES = {
    "rows": 100,
    "accuracy": 0.75,
    "macro_f1": 0.7999999,
    "loss": 0.5,
    "per_class": {
        "a|b": {"precision": 0.7, "recall": 0.8, "f1": 0.75, "support": 50},
        "c": {"precision": 0.8, "recall": 0.7, "f1": 0.75, "support": 50},
    },
    "labels": ["a|b", "c"],
    "confusion": [[40, 10], [15, 35]],
}
EVALUATION = {
    "test": SCORES,
    "slices": {"amazon": {"rows": 10, "macro_f1": 0.5}},
    "baseline": {"test": {"macro_f1": 0.6}, "slices": {"amazon": {"macro_f1": 0.4}}},
}
DATASET = {
    "labels": ["a|b", "c"],
    "rows": {"train": 800, "validation": 100, "test": 100},
    "tokens": {"train": 8000, "validation": 1000, "test": 1000},
    "dropped": {"exact_dedup": 20},
    "bad": 3,
    "read": 1023,
    "sources": [{"path": "data/x.tsv", "sha256": "ab" * 32, "bytes": 12345, "rows": 1023}],
}
TRAINED = {"steps": 40, "epochs": 2.0, "train_loss": 0.4, "validation_loss": 0.45, "best_step": 30, "parameters": 22_700_000}


@dataclass(frozen=True)
class Finished:
    """A job whose stages before `publish` are done."""

    storage: Storage
    job: JobSpec
    inputs: dict[str, Artifact]
    context: Context

    def publish(self, key: str = "key1", **changed: Any) -> dict[str, Any]:
        spec = self.job.publish.model_copy(update=changed)  # type: ignore[union-attr]
        out = Artifact(self.storage.at(f"artifacts/publish/{key}"), "publish", key)
        return publish.run(publish.View(name=self.job.name, model=self.job.model, publish=spec), self.inputs, out, self.context)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.integration)])
def finished(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Finished:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    storage = open_storage(
        str(tmp_path / "storage") if request.param == "folder" else f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    )
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (base / "LICENSE").write_text("Apache License\n")
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"")
    job = JobSpec.parse(
        {
            "name": "stars",
            "task": {"kind": "text_classification"},
            "model": {"ref": f"file:{base}"},
            "data": {"sources": [{"kind": "tsv", "path": "data/x.tsv"}]},
            "publish": {"alias": "prod", "gate": {"macro_f1": ">= 0.75", "accuracy": " > 0.5"}},
        }
    )
    inputs = {name: Artifact(storage.at(f"artifacts/{name}/k"), name, f"{name}-key") for name in publish.INPUTS}
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "bert"}')
    (model / "model.safetensors").write_bytes(b"weights")
    Signature(
        problem="text_classification", protocols=("predicts",), inputs=("text",), outputs=("label",), labels=("a|b", "c"), max_length=128
    ).write(model)
    inputs["train"].storage.upload(model, "model")
    inputs["prepare"].storage.write("processor/tokenizer.json", b"{}")
    inputs["evaluate"].storage.write("evaluation.json", json.dumps(EVALUATION).encode())
    records = {
        name: Record(
            stage=name,
            key=f"{name}-key",
            inputs={},
            view={},
            code="c",
            versions={"torch": "2"},
            metrics=metrics,
            started="2026-01-02T03:04:05",
            seconds=1,
        )
        for name, metrics in (("prepare", DATASET), ("train", TRAINED), ("evaluate", {}))
    }
    run_dir = tmp_path / "run"
    context = Context(
        job=job.canonical(),
        job_name=job.name,
        storage=storage,
        resources=job.resources,
        run_dir=run_dir,
        events=Events(run_dir),
        progress=lambda text: None,
        records=records,
    )
    return Finished(storage, job, inputs, context)


def test_the_folder_holds_all_that_others_need(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    before, folders = Registry.publish, []
    monkeypatch.setattr(
        Registry, "publish", lambda self, name, folder, facts: (folders.append(folder), before(self, name, folder, facts))[1]
    )
    metrics = finished.publish()
    assert not folders[0].is_relative_to(finished.context.run_dir), "what lies there, the heartbeat uploads"
    registry = Registry(finished.storage)
    version = registry.get("stars", "prod")
    assert metrics == {"name": "stars", "version": 1, "uri": registry.uri("stars", 1), "alias": "prod"}
    assert registry.verify("stars", 1) == []
    folder = registry.folder(version)
    expected = {
        "README.md",
        "DATA.md",
        "data.json",
        "LICENSE",
        "lineage.json",
        "evaluation.json",
        "config.json",
        "model.safetensors",
        "signature.json",
    }
    assert set(version.files) == expected | {"tokenizer.json"}
    assert (folder / "model.safetensors").read_bytes() == b"weights" and not (folder / "model.safetensors").is_symlink()
    assert (folder / "LICENSE").read_text() == "Apache License\n"

    card = (folder / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "Apache-2.0" and yaml.safe_load(front)["pipeline_tag"] == "text-classification"
    for fact in (
        "| | test split | baseline | slice amazon | baseline |",
        "| macro_f1 | 0.8 | 0.6 | 0.5 | 0.4 |",
        "| a\\|b | 0.7 | 0.8 | 0.75 | 50 |",
        "1,023 rows read, 3 unusable, 20 set aside",
        "22,700,000 parameters",
        "| lr | 5e-05 |",
        "On the slice `amazon` macro_f1 is 0.5, against 0.8",
        "raybm render stars@prod",
        "macro_f1 >= 0.75, accuracy",
    ):
        assert fact in body, card
    assert "\n\n\n" not in body
    assert "ab" * 32 in (folder / "DATA.md").read_text()

    lineage = json.loads((folder / "lineage.json").read_text())
    assert lineage["data"] == DATASET["sources"] and lineage["spec"] == finished.job.canonical()
    assert lineage["artifacts"]["train"]["key"] == "train-key" and lineage["packages"]["pydantic"]
    assert lineage["code"]["digest"] and version.facts["lineage"] == lineage
    assert not list(finished.context.run_dir.iterdir()), "nothing temporary stays"


def test_every_problem_has_a_card(finished: Finished) -> None:
    problems = get_args(Signature.model_fields["problem"].annotation)
    assert set(publish.DOES) == set(problems)
    view = publish.View(name="x", model=finished.job.model, publish=PublishSpec())
    scores = {"test": {"rows": 5, "rmse": 1.25, "r2": 0.5}, "slices": {"far": {"rows": 4, "rmse": 2.5}}, "baseline": {"test": {"rmse": 2}}}
    for problem in problems:
        signature = Signature(problem=problem, protocols=("predicts",), inputs=("area", "town"), outputs=("value",))
        card = publish.model_card(view, signature, None, scores, finished.context)
        assert "| rmse | 1.25 | 2 | 2.5 |" in card and "On the slice `far` rmse is 2.5" in card
        assert problem != "regression" or "Predicts a number from area, town." in card


def test_the_gate_names_every_number_that_fell_short(finished: Finished) -> None:
    with pytest.raises(GateRefused) as error:
        finished.publish(gate={"macro_f1": ">= 0.80", "loss": "<0.5", "accuracy": "> 0.5", "micro_f1": ">= 0"})
    assert error.value.what == "macro_f1 0.7999999 is not >= 0.80; loss 0.5 is not < 0.5; micro_f1 was not measured, and must be >= 0."
    assert Registry(finished.storage).models() == ()


def test_again_after_a_crash_it_is_the_same_version(finished: Finished) -> None:
    finished.publish(alias=None)  # and then the driver died before the record was written
    assert finished.publish()["version"] == 1
    assert Registry(finished.storage).alias("stars", "prod").version == 1  # type: ignore[union-attr]
    assert finished.publish(key="key2")["version"] == 2
    assert Registry(finished.storage).rollback("stars", "prod").version == 1


def test_without_evaluation_and_with_a_language_model(finished: Finished) -> None:
    del finished.inputs["evaluate"]
    signature = Signature(problem="causal_lm", protocols=("generates",), inputs=("messages", "prompt"), outputs=("text",))
    finished.inputs["train"].storage.write("model/signature.json", json.dumps(signature.canonical()).encode())
    metrics = finished.publish(gate={}, alias=None, name="chat", license="MIT")
    registry = Registry(finished.storage)
    version = registry.get(metrics["name"], metrics["version"])
    card = (registry.folder(version) / "README.md").read_text()
    assert "was not evaluated" in card and "AutoModelForCausalLM" in card and "raybm render chat@VERSION" in card and "MIT. See" in card
    assert "evaluation.json" not in version.files and registry.aliases("chat") == {}


def test_a_slice_alone_is_an_evaluation_too(finished: Finished) -> None:
    finished.inputs["evaluate"].storage.write("evaluation.json", json.dumps({"slices": EVALUATION["slices"]}).encode())
    finished.publish(gate={}, alias=None)
    card = (Registry(finished.storage).folder(Registry(finished.storage).get("stars", 1)) / "README.md").read_text()
    assert "| | slice amazon |" in card and "| macro_f1 | 0.5 |" in card and "against" not in card

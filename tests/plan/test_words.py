from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raybm import plan
from raybm.cli import app
from raybm.core.errors import NotFound, UserError
from raybm.core.storage import open_storage
from raybm.models.shapes import Shape
from raybm.plan.files import Disk, disk
from raybm.plan.job import setup_of
from raybm.plan.memory import Setup
from raybm.plan.units import counted, duration
from tests.engines import tiny
from tests.plan.jobs import job, language_model, write_model


def test_disk_is_rows_checkpoints_model_and_published_copy(tmp_path: Path) -> None:
    whole = Shape(340)

    def needed(**train: Any) -> Disk:
        spec = job(tmp_path, publish={}, train=train)
        return disk(spec, whole, setup_of(spec, 2, False))

    made = needed()
    assert (made.sources, made.model, made.published, made.checkpoint) == (2800, 340 * 4, 340 * 4, 340 * 16)
    assert made.total == 5600 + 3 * 340 * 16 + 2 * 340 * 4
    assert needed(ema=0.9).checkpoint == 340 * (16 + 4)
    assert needed(zero={"stage": 0}).checkpoint == 340 * (4 + 8), "fp32 weights are the optimiser's own"
    assert needed(optimizer="lion").checkpoint == 340 * (4 + 8)
    assert needed(precision="bf16").checkpoint == 340 * (2 + 12)


def test_a_checkpoint_keeps_states_of_what_learns_alone(tmp_path: Path) -> None:
    spec = job(tmp_path)
    few = Shape(7_000_000_000, frozen=6_900_000_000, quantized=6_000_000_000)
    assert disk(spec, few, Setup(ranks=2, stage=2, each=2)).checkpoint == 8_000_000_000 + 100_000_000 * 12 - 6_000_000_000
    assert disk(spec, few, Setup(ranks=2, stage=2, each=2, few=0.5)).checkpoint == 2_000_000_000 + 3_000_000_000 + 1_200_000_000


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_a_dry_run_knows_what_does_not_learn(tmp_path: Path, quantize: str | None) -> None:
    """The same bytes as the plan's."""
    folder = tiny.language_model(tmp_path / "lm")
    spec = language_model(tmp_path, model={"ref": f"file:{folder}", "max_length": 16, "lora": {"rank": 1, "quantize": quantize}})
    made = plan.plan(spec, open_storage(spec.storage))
    assert made.shape.trainable < made.shape.parameters / 10 and made.chosen is not None
    _, memory, disk = plan.lines(spec)
    assert f"weights {plan.size(made.chosen.memory.weights)}" in memory
    assert f"optimiser {plan.size(made.shape.trainable / 2 * 12)}" in memory
    assert f"of {plan.size(made.disk.checkpoint)}, model {plan.size(made.disk.model)}" in disk
    assert made.disk.checkpoint < 1.7 * made.disk.model


def test_a_dry_run_knows_frozen_layers_and_references(tmp_path: Path) -> None:
    model = {"ref": f"file:{tiny.language_model(tmp_path / 'lm')}", "max_length": 16}
    pairs = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), "columns": {"prompt": "text", "chosen": "text", "rejected": "label"}}
    for changes in (
        {"model": model | {"freeze": ["model.embed_tokens.*", "model.layers.*"]}},
        {"model": model, "task": {"kind": "preference"}, "data": {"sources": [pairs]}},
    ):
        spec = language_model(tmp_path, **changes)
        made = plan.plan(spec, open_storage(spec.storage))
        assert made.chosen is not None and made.shape.frozen
        _, memory, disk = plan.lines(spec)
        assert f"optimiser {plan.size(made.chosen.memory.optimizer)}" in memory
        assert f"of {plan.size(made.disk.checkpoint)}, model {plan.size(made.disk.model)}" in disk
    assert made.disk.model == 4 * made.shape.trainable, "the policy without its reference"


def test_a_dry_run_tells_what_the_model_lacks(tmp_path: Path) -> None:
    model = {"ref": f"file:{tiny.language_model(tmp_path / 'lm')}", "lora": {"targets": ["qkv"]}, "max_length": 16}
    with pytest.raises(UserError, match="no layer is called qkv"):
        plan.lines(language_model(tmp_path, model=model))


def test_the_plan_in_words_needs_no_torch(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    spec = tmp_path / "job.json"
    spec.write_text(json.dumps(job(tmp_path).canonical()))
    program = (
        "import json, sys; from raybm import plan; from raybm.spec import JobSpec;"
        "print('\\n'.join(plan.lines(JobSpec.parse(json.load(open(sys.argv[1])))))); assert not {'torch', 'ray'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(spec)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    model, memory, disk = done.stdout.splitlines()
    assert model == f"model   340 parameters (file:{tmp_path / 'model'})"
    assert "on each of 2 ranks" in memory and "16 rows of 16 tokens" in memory
    assert "3 checkpoints (last, best, next) of 5.4 kB" in disk and "free" in disk


def test_what_is_not_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    absent = job(tmp_path, model={"ref": "hub:nobody/nothing"})
    (said,) = plan.lines(absent)
    assert "not on this machine yet" in said
    with pytest.raises(NotFound, match="scratch:MODEL_TYPE"):
        plan.plan(absent, open_storage(absent.storage))
    with pytest.raises(NotFound):
        plan.lines(job(tmp_path, model={"ref": f"file:{tmp_path / 'absent'}"}))


def test_the_command_prints_a_table_or_one_json_object(tmp_path: Path) -> None:
    spec = tmp_path / "job.json"
    spec.write_text(json.dumps(language_model(tmp_path).canonical()))
    command = ["plan", str(spec), "--workers", "64", "--device", "h100-80gb"]
    said = CliRunner().invoke(app, command, catch_exceptions=False).output
    assert "advice  train.zero.stage 0, micro_batch 1" in said and "64 on h100-80gb" in said and "←" in said
    made = json.loads(CliRunner().invoke(app, [*command, "--json", "--price", "1"], catch_exceptions=False).output)
    assert (made["workers"], made["global_batch"], made["counted"]) == (64, 64, True)
    assert [(option["stage"], option["offload"]) for option in made["options"]][:4] == [(stage, "none") for stage in range(4)]
    first = made["options"][0]
    assert first["memory"]["total"] > 0 and first["run"]["usd"] > 0 and first["communication_bytes"] == 8 * made["shape"]["parameters"]


def test_an_unknown_device(tmp_path: Path) -> None:
    spec = tmp_path / "job.json"
    spec.write_text(json.dumps(language_model(tmp_path).canonical()))
    with pytest.raises(UserError, match="h100-80gb"):
        CliRunner().invoke(app, ["plan", str(spec), "--device", "abacus"], catch_exceptions=False)


def test_numbers_in_words() -> None:
    assert [plan.size(n) for n in (0, 999, 1234, 269_000_000, 7_500_000_000)] == ["0 bytes", "999 bytes", "1.2 kB", "269 MB", "7.5 GB"]
    assert [duration(n) for n in (0.0012, 75, 7300, 200_000)] == ["1.2 ms", "75 s", "122 min", "56 h"]
    assert counted(2_851_598_336) == "2.9 billion"

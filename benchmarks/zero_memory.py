"""What ZeRO's stages hold of a small model: bytes a parameter on a rank, beside what raybm's plan says.

The engine is raybm's own (DeepSpeed on CPUs, gloo), fp32 with AdamW, and bf16 for the stages that raybm allows it. Counted are the
tensors in the process (benchmarks/held.py), not its resident memory: at the end of the backward pass before `step()`, and the most there
ever is at once during a backward pass (gradients, buffers, gathered weights), activations apart. The formulas (raybm/plan/memory.py)
follow from the ZeRO paper and DeepSpeed's source; nothing in them is fitted to these measurements. The mean over the ranks counts.

Prints {"max_relative_error", "max_relative_error_backward", "bytes_per_param_<stage>_<workers>"}: the largest |measured ÷ formula - 1|
over stages 0-3, 2 and 4 workers and both precisions, before `step()` and during the backward pass, and the measured fp32
bytes before `step()`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

from raybm import ops
from raybm.core.storage import open_storage
from raybm.models.shapes import Shape, shape
from raybm.models.spec import ModelSpec
from raybm.plan.memory import Setup, memory
from raybm.spec.train import BUCKET

CONFIG = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
VOCABULARY = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    given = parser.parse_args()
    before = common.load()
    cases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder:
        model = the_shape(Path(folder))
        for workers in given.workers:
            asked = [case(stage, precision) for precision in ("fp32", "bf16") for stage in (0, 1, 2, 3) if stage or precision == "fp32"]
            for one, ranks in zip(asked, run(Path(folder), asked, workers), strict=True):
                cases[f"{one['name']}, {workers} workers"] = compared(one, ranks, model, workers)
    numbers = {"max_relative_error": max(case["error"] for case in cases.values())}
    numbers["max_relative_error_backward"] = max(case["error_backward"] for case in cases.values())
    for workers in given.workers:
        numbers |= {f"bytes_per_param_{stage}_{workers}": cases[f"stage {stage} fp32, {workers} workers"]["measured"] for stage in range(4)}
    common.report(numbers, cases | {"parameters": model.parameters}, before)


def the_shape(folder: Path) -> Shape:
    tokenizer = {"train": "bpe", "vocab_size": VOCABULARY}
    found = shape(ModelSpec.parse({"ref": "scratch:llama", "config": CONFIG, "tokenizer": tokenizer}), open_storage(str(folder)))
    assert found is not None
    return found


def case(stage: int, precision: str) -> dict[str, Any]:
    return {
        "name": f"stage {stage} {precision}",
        "task": "causal_lm",
        "config": {"model_type": "llama", "vocab_size": VOCABULARY, **CONFIG},
        "train": {"precision": precision, "zero": {"stage": stage}},
        "rows": 1,
        "length": 16,
        "steps": 2,
        "watch": True,
    }


def run(folder: Path, cases: list[dict[str, Any]], workers: int) -> list[list[dict[str, Any]]]:
    """Of each case the ranks' answers."""
    (folder / "cases.json").write_text(json.dumps(cases))
    common.say(f"{len(cases)} cases on {workers} ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", f"--nproc-per-node={workers}"]
    given = ops.environment() | ops.KEEPS_MEMORY | {"OMP_NUM_THREADS": "1"}
    out = common.run([*torchrun, common.ROOT / "benchmarks" / "held.py", folder / "cases.json"], **given)
    answers: list[list[dict[str, Any]]] = json.loads(out.splitlines()[-1])
    return answers


def compared(one: dict[str, Any], ranks: list[dict[str, Any]], model: Shape, workers: int) -> dict[str, Any]:
    """Bytes a parameter, measured and by formula."""
    train = one["train"]
    each = 4 if train["precision"] == "fp32" else 2
    said = memory(model, Setup(ranks=workers, stage=train["zero"]["stage"], each=each, bucket=BUCKET["cpu"]))
    backward = said.weights + said.gradients + said.optimizer + said.buffers
    measured, peak = (statistics.mean(rank[name] for rank in ranks) for name in ("held", "peak"))
    made = {
        "measured": round(measured / model.parameters, 3),
        "formula": round(said.held / model.parameters, 3),
        "error": round(abs(measured / said.held - 1), 4),
        "measured_backward": round(peak / model.parameters, 3),
        "formula_backward": round(backward / model.parameters, 3),
        "error_backward": round(abs(peak / backward - 1), 4),
    }
    common.say(f"{one['name']}, {workers} workers: {made}")
    return made


if __name__ == "__main__":
    main()

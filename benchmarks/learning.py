"""What is learned in three minutes of two cores: a character model of Shakespeare, by raybm and by bare code in nanoGPT's way.

The same transformer, batch, learning rate and schedule; two processes of one thread each, whole replicas on both sides. Both get as many
steps as they make in the time, found by a short run before, whose first ten steps are not counted. The bare code draws random crops,
raybm deals blocks of the text. The last tenth of the text is held out; both are scored on the same blocks of it, in nats a character.

Prints {"val_nats_per_char", "vs_bare"}: raybm's, and raybm's ÷ the bare code's; less is better.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import common
import yaml
from race import bare

from raybm.core.events import by_step, read_events

TRIAL_STEPS = 80
WARM_STEPS = 10  # not counted in the time of a step, on both sides
CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
TRAIN = {"global_batch": 24, "lr": 2e-3, "weight_decay": 0.1, "betas": [0.9, 0.98], "warmup": 0.05, "schedule": "cosine", "clip_norm": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--data", type=Path, default=common.ROOT.parent / "shared" / "data", help="Folder with tinyshakespeare.")
    given = parser.parse_args()
    source = given.data / "tinyshakespeare" / "input.txt"
    if not source.exists():
        common.fail(f"{source} is missing; give its folder by --data.")
    before = common.load()
    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder:
        place = Path(folder)
        text = source.read_text(encoding="utf-8")
        cut = len(text) * 9 // 10
        (place / "train.txt").write_text(text[:cut], encoding="utf-8")
        (place / "validation.txt").write_text(text[cut:], encoding="utf-8")
        cases = {"raybm": by_raybm(place, given.seconds), "bare": by_bare(place, given.seconds)}
    ours, theirs = cases["raybm"]["nats"], cases["bare"]["nats"]
    common.report({"val_nats_per_char": round(ours, 4), "vs_bare": round(ours / theirs, 4)}, cases, before)


def by_raybm(place: Path, seconds: float) -> dict[str, Any]:
    job = {
        "name": "characters",
        "task": {"kind": "causal_lm"},
        "model": {
            "ref": "scratch:llama",
            "max_length": CONFIG["max_position_embeddings"],
            "config": {name: value for name, value in CONFIG.items() if name != "model_type"},
            "tokenizer": {"train": "char", "vocab_size": 100},
        },
        "data": {
            "sources": [
                {"kind": "text", "path": str(place / f"{split}.txt"), "unit": "file", "split": split} for split in ("train", "validation")
            ],
            "steps": [],
        },
        "train": TRAIN | {"zero": {"stage": 0}, "validate_every_steps": 1_000_000},
    }
    path = place / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    fixed = {"evaluate": None, "publish": None, "train.log_every_steps": WARM_STEPS}

    def run(steps: int) -> tuple[float, float]:
        events = list(read_events(common.run_job(path, place / "raybm", fixed | {"train.max_steps": steps}) / "metrics.jsonl"))
        timed = by_step(events, "train")[1:]
        each = sum(event["seconds"] for event in timed) / (timed[-1]["step"] - WARM_STEPS)
        return each, by_step(events, "validate")[-1]["loss"]

    steps = round(seconds / run(TRIAL_STEPS)[0])
    each, nats = run(steps)
    common.say(f"raybm: {steps} steps, {nats:.4f} nats a character")
    return {"steps": steps, "seconds": round(steps * each, 1), "nats": round(nats, 4)}


def by_bare(place: Path, seconds: float) -> dict[str, Any]:
    case = {"train": str(place / "train.txt"), "validation": str(place / "validation.txt"), "config": CONFIG, "workers": 2}
    case |= {"block": CONFIG["max_position_embeddings"], "batch": TRAIN["global_batch"], "warm": WARM_STEPS} | TRAIN
    path = place / "case.json"

    def run(steps: int) -> tuple[float, float]:
        path.write_text(json.dumps(case | {"steps": steps}))
        answer = bare("chars.py", path)
        return answer["seconds_a_step"], answer["nats"]

    steps = round(seconds / run(TRIAL_STEPS)[0])
    each, nats = run(steps)
    common.say(f"bare: {steps} steps, {nats:.4f} nats a character")
    return {"steps": steps, "seconds": round(steps * each, 1), "nats": round(nats, 4)}


if __name__ == "__main__":
    main()

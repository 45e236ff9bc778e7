"""raybm's training against bare loops and against transformers' Trainer, on CPUs: two workers of one thread each.

Equal batches: the same model, rows and order for all (an encoder and a small Llama, as in train_overhead.py), with Trainer under DDP
beside the bare loops; `vs_raybm_loop` under `cases` is the share that Ray takes. Useful tokens: real tokens a second, padding apart,
each side as its documentation advises: raybm with ZeRO stage 0, `length_buckets` and `micro_tokens` (SMS messages, MiniLM) or with
packed rows (lines of Shakespeare, a small Llama), Trainer with padded batches drawn at random (its default) and grouped by length. A
step holds the same rows on both sides, for the lines about as many real tokens. `padding` under `cases`: of the tokens that a side
computes, those that are none, which is all that dealing the rows better could win. A round runs all in turning order; medians over
the rounds.

Prints {"vs_ddp_loop", "vs_deepspeed_loop", "vs_hf_trainer", "useful_tokens_sms_vs_hf_trainer", "useful_tokens_sms_vs_hf_grouped",
"useful_tokens_text_vs_hf_trainer", "useful_tokens_text_vs_hf_grouped"}: ratios of tokens/s, more than 1 is faster than the peer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import common
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from race import APART, CASES, LOOPS, SETTINGS, TRAINER, WINDOW, bare, measure

from raybm.core.events import by_step, read_events

GROUPED = {"hf_trainer": "random", "hf_grouped": "group_by_length"}
STEP_TOKENS = 2048  # of a worker, in the case of the lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help=f"Of each run, the first {WINDOW} of which are not counted. Default: {CASES}, then 40.")
    parser.add_argument("--part", choices=("equal", "useful"), help="Only these numbers.")
    parser.add_argument(
        "--data", type=Path, default=common.ROOT.parent / "shared" / "data", help="Folder with sms_spam and tinyshakespeare."
    )
    given = parser.parse_args()
    jobs = {"sms": sms(given.data / "sms_spam" / "SMSSpamCollection"), "text": lines(given.data / "tinyshakespeare" / "input.txt")}
    for name, _ in CASES.values():
        common.require_data(common.JOBS / f"{name}.yaml")
    before, numbers, cases, peers = common.load(), dict[str, float](), dict[str, Any](), LOOPS | TRAINER
    beside = {"raybm_loop": APART["raybm_loop"]}
    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder:
        place = Path(folder)
        if given.part != "useful":
            for name, (job, steps) in CASES.items():
                cases[name] = measure(common.JOBS / f"{job}.yaml", place / name, given.rounds, given.steps or steps, peers | beside)
            numbers |= {f"vs_{peer}": min(cases[name][f"vs_{peer}"] for name in CASES) for peer in peers}
        if given.part != "equal":
            for name, spec in jobs.items():
                (place / f"{name}.yaml").write_text(yaml.safe_dump(spec))
                cases[name] = useful(place / f"{name}.yaml", place / name, given.rounds, given.steps or 40)
            numbers |= {f"useful_tokens_{name}_vs_{peer}": cases[name][f"vs_{peer}"] for name in jobs for peer in GROUPED}
    common.report(numbers, cases, before)


def sms(path: Path) -> dict[str, Any]:
    """MiniLM on label and text of SMS messages."""
    job = yaml.safe_load((common.JOBS / "sentiment_minilm.yaml").read_text())
    source = {"kind": "tsv", "path": there(path), "header": False, "quoting": False, "columns": {"label": 0, "text": 1}}
    job |= {"name": "sms", "data": {"sources": [source], "split": {"test": 0, "validation": 0}}}
    job["train"] = {"global_batch": 32, "lr": 1e-4, "length_buckets": True, "micro_tokens": 4096, "zero": {"stage": 0}}
    return job


def lines(path: Path) -> dict[str, Any]:
    """The small Llama of jobs/pretrain_tiny.yaml on lines, each a text of its own."""
    job = yaml.safe_load((common.JOBS / "pretrain_tiny.yaml").read_text())
    job |= {
        "name": "lines",
        "data": {"sources": [{"kind": "text", "path": there(path), "unit": "line"}], "split": {"test": 0, "validation": 0}},
    }
    job["train"]["zero"] = {"stage": 0}
    job["train"]["global_batch"] = 2 * STEP_TOKENS // job["model"]["max_length"]
    return job


def there(path: Path) -> str:
    if not path.exists():
        common.fail(f"{path} is missing; give its folder by --data.")
    return str(path)


def useful(path: Path, place: Path, rounds: int, steps: int) -> dict[str, Any]:
    """Real tokens a second of raybm and of Trainer in both samplings."""
    settings = SETTINGS | {"train.max_steps": steps}
    done = common.run_job(path, place / "raybm", settings)  # what Trainer starts from; not timed
    cases = {name: case(done, place, sampling, steps) for name, sampling in GROUPED.items()}
    speeds: dict[str, list[float]] = {name: [] for name in ("raybm", *GROUPED)}
    padding: dict[str, float] = {}
    for number in range(rounds):
        order = list(speeds)
        for name in order[number % 3 :] + order[: number % 3]:
            if name == "raybm":
                shutil.rmtree(place / "raybm" / "artifacts" / "train")
                events = by_step(read_events(common.run_job(path, place / "raybm", settings) / "metrics.jsonl"), "train")[1:]
                counts = [event["tokens_per_s"] * event["seconds"] for event in events]
                tokens, seconds = sum(counts), sum(event["seconds"] for event in events)
                computed = sum(count / (1 - event["padding"]) for count, event in zip(counts, events, strict=True))
                padding[name] = 1 - tokens / computed
            else:
                answer = bare("trainer.py", cases[name])
                tokens, seconds = sum(answer["losses"][1:]) * WINDOW * 2, sum(answer["windows"][1:])
                padding[name] = answer["padding"]
            speeds[name].append(tokens / seconds)
            common.say(f"{path.stem} round {number + 1} {name}: {speeds[name][-1]:.0f} real tokens/s")
    middle = {name: statistics.median(each) for name, each in speeds.items()}
    ratios = {f"vs_{name}": round(middle["raybm"] / middle[name], 4) for name in GROUPED}
    rounded = {name: round(share, 4) for name, share in padding.items()}
    return ratios | {"tokens_per_s": {name: common.spread(each) for name, each in speeds.items()}, "padding": rounded}


def case(done: Path, place: Path, sampling: str, steps: int) -> Path:
    """What Trainer needs: the model, and the rows as they are, one text a row."""
    model = place / "model"
    if not model.exists():
        shutil.copytree(common.artifact(done, "train") / "model", model)
    prepared, rows = common.artifact(done, "prepare"), place / "rows.parquet"
    encoded = pq.read_table(prepared / "encoded" / "train")
    batch = 16
    if "position_ids" in encoded.column_names:  # packed
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(prepared / "processor")
        texts = pq.read_table(prepared / "rows" / "train", columns=["text"])["text"].to_pylist()
        ids = [[*text, tokenizer.eos_token_id] for text in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        encoded = pa.table({"input_ids": ids, "labels": ids})
        batch = round(STEP_TOKENS * len(ids) / sum(map(len, ids)))
    pq.write_table(encoded, rows)
    config, job = json.loads((model / "config.json").read_text()), json.loads((done / "spec.json").read_text())["train"]
    made = place / f"{sampling}.json"
    made.write_text(
        json.dumps(
            {
                "class": config["architectures"][0],
                "model": str(model),
                "rows": str(rows),
                "sampling": sampling,
                "steps": steps,
                "batch": batch,
                "pad": config.get("pad_token_id") or 0,
                "one_label": config["architectures"][0].endswith("ForSequenceClassification"),
                "workers": 2,
                "window": WINDOW,
                **{name: job[name] for name in ("lr", "betas", "weight_decay", "clip_norm")},
            }
        )
    )
    return made


if __name__ == "__main__":
    main()

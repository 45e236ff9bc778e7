"""One honest score a task: an example job of each, by the command line, beside a simple model on the same split.

Classification, tags, spans, numbers, translations and retrieval are scored by the job's own evaluation, which trains the simple model
on the same rows (a linear model, the most frequent tag, a table of words, TF-IDF). Language models are held against a bigram model
with interpolation over the same tokens, masked ones against the tokens' frequencies, preferences against a coin.

Prints {"beats_baseline"}: the share of the jobs that do; by job, under `cases`, the metric, the score and the baseline's.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import common
import pyarrow.parquet as pq
import yaml

FALLING = ("loss", "perplexity", "rmse", "mae")
ONE_EACH = (
    "pretrain_tiny",
    "pretrain_masked",
    "pronounce_words",
    "dpo_smollm2",
    "sentiment_minilm",
    "ner_people_daily",
    "qa_factbook",
    "diamonds_mlp",
    "embed_pairs",
    "mnist_cnn",
    "clip_digits",
)
LEFT_OUT = ("smoke", "compare_architectures")  # made-up rows; the same data as sentiment_minilm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", action="append", help="Only this one of jobs/, without .yaml.")
    parser.add_argument("--all", action="store_true", help="Every job of jobs/.")
    given = parser.parse_args()
    every = [path.stem for path in sorted(common.JOBS.glob("*.yaml")) if path.stem not in LEFT_OUT]
    names = given.job or (every if given.all else ONE_EACH)
    for name in names:
        common.require_data(common.JOBS / f"{name}.yaml")
    before, cases = common.load(), {}
    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder:
        for name in names:
            cases[name] = scored(name, Path(folder) / name)
            common.say(f"{name}: {cases[name]}")
    common.report({"beats_baseline": round(sum(case["beats"] for case in cases.values()) / len(cases), 4)}, cases, before)


def scored(name: str, storage: Path) -> dict[str, Any]:
    job = yaml.safe_load((common.JOBS / f"{name}.yaml").read_text())
    done = common.run_job(common.JOBS / f"{name}.yaml", storage, {"publish": None})
    evaluation = json.loads((common.artifact(done, "evaluate") / "evaluation.json").read_text())
    metric, beside = against(job["task"]["kind"], evaluation, common.artifact(done, "prepare"))
    score = evaluation["test"][metric]
    better = score < beside if metric in FALLING else score > beside
    return {"metric": metric, "score": round(score, 4), "baseline": round(beside, 4), "beats": int(better)}


def against(kind: str, evaluation: dict[str, Any], prepared: Path) -> tuple[str, float]:
    """The metric that says most about a task, and the simple model's."""
    if "baseline" in evaluation:
        main = ("macro_f1", "f1", "micro_f1", "rmse", "chrf", "recall_at_1", "image_to_text_recall_at_1", "accuracy")
        metric = next(name for name in main if name in evaluation["baseline"]["test"] and name in evaluation["test"])
        return metric, evaluation["baseline"]["test"][metric]
    if kind == "preference":
        return "accuracy", 0.5
    return "loss", frequencies(prepared) if kind == "masked_lm" else bigrams(prepared)


def rows(prepared: Path, split: str, column: str) -> list[list[int]]:
    found: list[list[int]] = pq.read_table(prepared / "encoded" / split, columns=[column])[column].to_pylist()
    return found


def frequencies(prepared: Path) -> float:
    """Nats a token, by how often each stands in training (add-one)."""
    counts = Counter(token for row in rows(prepared, "train", "input_ids") for token in row)
    total, kinds = sum(counts.values()), len(counts) + 1
    test = [token for row in rows(prepared, "test", "input_ids") for token in row]
    return -sum(math.log((counts[token] + 1) / (total + kinds)) for token in test) / len(test)


def bigrams(prepared: Path) -> float:
    """Nats a target token: a bigram model with Witten-Bell interpolation towards the tokens' frequencies."""
    from raybm.tasks.batching import IGNORED  # loads torch

    train = rows(prepared, "train", "input_ids")
    counts = Counter(token for row in train for token in row)
    pairs = Counter(pair for row in train for pair in pairwise(row))
    first, follow = Counter(a for a, _ in pairs.elements()), Counter(a for a, _ in pairs)
    total, kinds = sum(counts.values()), len(counts) + 1
    nats = targets = 0.0
    for ids, labels in zip(rows(prepared, "test", "input_ids"), rows(prepared, "test", "labels"), strict=True):
        for (before, token), label in zip(pairwise(ids), labels[1:], strict=True):
            if label != IGNORED:
                alone = (counts[token] + 1) / (total + kinds)
                seen, different = first[before], follow[before]
                nats -= math.log((pairs[before, token] + different * alone) / (seen + different) if seen else alone)
                targets += 1
    return nats / targets


if __name__ == "__main__":
    main()

"""Which search finds good values with the fewest epochs? Two small models, five ways to search, the same budget of epochs for each.

A convolutional network on 1,000 digits of MNIST and a convolutional text classifier on 1,000 SMS messages; searched are learning rate,
batch, weight decay and warm-up, scored by validation loss after each epoch. Grid, random and TPE train every point for all its epochs;
ASHA (over random points) and TPE with ASHA have points pause after one and three epochs, of which the better third goes on, and try more
points for the same epochs. Random draws the same points with ASHA as without, seed by seed. Trials run one after another (`--slots`): two
at a time spend epochs on a second one while the first is to show what it is worth.

Prints {"epochs_to_random_best": {"tpe", "asha", "tpe_asha", "grid"}}: the epochs until random's final best is reached ÷ random's whole
budget, the median over the seeds (more than 1: not reached), the worse of the two models. Best losses against epochs stand under `cases`.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import common

EPOCHS = 9
POINTS = 10
BUDGET = EPOCHS * POINTS
ROWS = 1000
SPLIT = {"validation": 0.3, "test": 0.05}
ASHA = {"kind": "asha", "type": "promotion", "grace": 1, "reduction": 3}
TPE = {"kind": "tpe", "startup_trials": 4}
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "grid": ({"kind": "grid"}, None),
    "random": ({"kind": "random"}, None),
    "tpe": (TPE, None),
    "asha": ({"kind": "random"}, ASHA),
    "tpe_asha": (TPE, ASHA),
}
SPACE = {
    "train.lr": {"loguniform": [1e-5, 1e-1]},
    "train.global_batch": {"choice": [16, 32, 64, 128]},
    "train.weight_decay": {"loguniform": [1e-4, 1.0]},
    "train.warmup": {"uniform": [0.0, 0.3]},
}
LISTED = {"train.lr": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2], "train.global_batch": [32, 128], "train.weight_decay": [0.01], "train.warmup": [0.1]}
MISSED = 1.01
"""Stands for more than the whole budget."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--case", choices=("digits", "sms"), action="append", help="Only this one.")
    parser.add_argument("--slots", type=int, default=1, help="Trials at a time.")
    parser.add_argument("--data", type=Path, default=common.ROOT.parent / "shared" / "data", help="Folder with sms_spam.")
    given = parser.parse_args()
    from raybm.cluster import connect

    before, cases = common.load(), {}
    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder, connect(cpus=given.slots + 1, say=common.say, dashboard=True):
        for name in given.case or ("digits", "sms"):
            place = Path(folder) / name
            place.mkdir()
            job = digits(place) if name == "digits" else sms(place, given.data / "sms_spam" / "SMSSpamCollection")
            cases[name] = measured(job, place, given.seeds, given.slots)
    reached = {way: max(case["epochs_to_random_best"][way] for case in cases.values()) for way in WAYS if way != "random"}
    common.report({"epochs_to_random_best": reached}, cases, before)


def digits(place: Path) -> dict[str, Any]:
    source = Path("~/.raybm/datasets/mnist/digits.jsonl").expanduser()
    if not source.exists():
        common.fail(f"{source} is missing; `make setup` (or `python jobs/get_data.py`) brings it.")
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    (place / "digits.jsonl").write_text("".join(lines[:: len(lines) // ROWS][:ROWS]), encoding="utf-8")
    image = {"size": 28, "channels": 1, "mean": [0.13], "std": [0.31]}
    return {
        "task": {"kind": "image_classification"},
        "model": {"ref": "scratch:raybm_cnn", "image": image, "config": {"widths": [8, 16, 32]}},
        "data": {"sources": [{"kind": "jsonl", "path": str(place / "digits.jsonl")}], "split": SPLIT},
    }


def sms(place: Path, source: Path) -> dict[str, Any]:
    if not source.exists():
        common.fail(f"{source} is missing; give its folder with --data.")
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    (place / "sms.tsv").write_text("".join(lines[:: len(lines) // ROWS][:ROWS]), encoding="utf-8")
    columns = {"header": False, "quoting": False, "columns": {"label": 0, "text": 1}}
    return {
        "task": {"kind": "text_classification"},
        "model": {
            "ref": "scratch:raybm_textcnn",
            "max_length": 64,
            "config": {"hidden_size": 32},
            "tokenizer": {"train": "wordpiece", "vocab_size": 2000, "lowercase": True},
        },
        "data": {"sources": [{"kind": "tsv", "path": str(place / "sms.tsv"), **columns}], "split": SPLIT},
    }


def measured(job: dict[str, Any], place: Path, seeds: int, slots: int) -> dict[str, Any]:
    """One model: every way with every seed, in turns."""
    curves: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for seed in range(seeds):
        for way, (sampler, scheduler) in WAYS.items():
            began = time.perf_counter()
            found = searched(job, place, way, seed, {"sampler": sampler, "scheduler": scheduler, "concurrent": slots})
            curves[way].append(found)
            took = time.perf_counter() - began
            common.say(f"{place.name}, seed {seed + 1} of {seeds}, {way}: {found[-1]:.4f} after {len(found)} epochs, {took:.0f} s")
    bests = [curve[-1] for curve in curves["random"]]
    shares = {way: [reached(curve, best) for curve, best in zip(found, bests, strict=True)] for way, found in curves.items()}
    marks = [BUDGET // 8, BUDGET // 4, BUDGET // 2, BUDGET]
    return {
        "epochs_to_random_best": {way: round(statistics.median(found), 3) for way, found in shares.items()},
        "by_seed": {way: [round(share, 3) for share in found] for way, found in shares.items()},
        "best_loss_after_epochs": {
            way: {mark: round(statistics.median(curve[min(mark, len(curve)) - 1] for curve in found), 4) for mark in marks}
            for way, found in curves.items()
        },
    }


def reached(curve: list[float], best: float) -> float:
    """The share of the budget after which a search has what random ended with."""
    epoch = next((number for number, loss in enumerate(curve, 1) if loss <= best), None)
    return MISSED if epoch is None else epoch / BUDGET


def searched(plain: dict[str, Any], place: Path, way: str, seed: int, sweep: dict[str, Any]) -> list[float]:
    """One search in a storage of its own: the best validation loss after each epoch that any of its trials trained."""
    from raybm import runner
    from raybm.core.context import Context
    from raybm.core.events import Events
    from raybm.core.storage import open_storage
    from raybm.spec import JobSpec
    from raybm.sweep.search import Search
    from raybm.sweep.tuning import tune
    from raybm.sweep.work import Alone

    store = place / f"{way}-{seed}"
    points = BUDGET if sweep["scheduler"] else POINTS
    budget = {} if way == "grid" else {"budget": {"trials": points}}
    job = JobSpec.parse(
        plain
        | {
            "name": "quality",
            "seed": seed,
            "storage": str(store),
            "resources": {"workers": 1},
            "train": {"epochs": EPOCHS, "schedule": "constant", "zero": {"stage": 0}, "max_failures": 0},
            "sweep": {"space": LISTED if way == "grid" else SPACE, **sweep, **budget},
            "evaluate": None,
        }
    )
    storage, shared = open_storage(str(store)), place / f"prepared-{seed}"
    if shared.exists():
        shutil.copytree(shared, store)
    losses: list[float] = []
    trained: set[tuple[int, int]] = set()

    def listen(kind: str, fields: dict[str, Any]) -> None:
        epoch = (fields["step"], fields["validations"]) if kind == "trying" else (0, 0)
        if epoch[1] and epoch not in trained:  # a trial that goes on tells its last score once more
            trained.add(epoch)
            losses.append(fields["scores"]["validation.loss"])
            search.exhausted = len(losses) >= BUDGET  # no new point then

    events = Events(store / "run", [listen])
    context = Context(job.canonical(), job.name, storage, job.resources, store / "run", events, lambda line: None)
    base = job.model_copy(update={"sweep": None})
    runner.run(base, Alone("quality"), replace(context, job=base.canonical()), nullcontext, last="prepare")
    if not shared.exists():
        shutil.copytree(store / "artifacts" / "prepare", shared / "artifacts" / "prepare")
    search = Search(job, context, f"{way}-{seed}")
    tune(search, sweep["concurrent"])
    failed = [
        trial.error for point in search.points for trial in point.trials if trial.end == "failed" and "the loss is" not in trial.error
    ]
    if failed:
        raise RuntimeError(f"{way}, seed {seed}: {failed[0]}")
    shutil.rmtree(store)
    return [min(losses[: number + 1]) for number in range(len(losses))][:BUDGET]


if __name__ == "__main__":
    main()

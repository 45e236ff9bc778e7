"""What does a sweep cost beside its trials? Trials that sleep for a second, in our search and in bare Ray Tune, in turns.

Both draw a number at random, run in actors that are used again, and have as many slots. Prints {"vs_ideal": wall-clock time ÷
(trials × 1 s ÷ slots), "vs_ray_tune": our time ÷ Ray Tune's}, medians over the rounds. With --scale trials that do nothing instead, 100,
400 and 1,600 of them: {"ms_per_trial_growth", "memory_growth"}: of a trial among 1,600 ÷ of one among 100, in our driver's time and in
what its memory grew by.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import psutil

SLOTS = 2
SIZES = (100, 400, 1600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", action="store_true")
    given = parser.parse_args()
    from raybm.cluster import connect

    before = common.load()
    with connect(cpus=SLOTS + 1, say=common.say, dashboard=True):  # as `raybm run` starts it for a sweep
        numbers, cases = scale() if given.scale else overhead(given.trials, given.rounds)
    common.report(numbers, cases, before)


def overhead(trials: int, rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    sides: dict[str, Callable[[int, float], float]] = {"raybm": ours, "ray_tune": bare}
    for side in sides.values():
        side(2 * SLOTS, 0.0)  # actors that start for the first time, imports
    walls: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            walls[name].append(side(trials, 1.0))
            common.say(f"round {number + 1} of {rounds}: {name} {walls[name][-1]:.1f} s")
    ideal = trials / SLOTS
    numbers = {
        "vs_ideal": statistics.median(walls["raybm"]) / ideal,
        "vs_ray_tune": statistics.median(a / b for a, b in zip(walls["raybm"], walls["ray_tune"], strict=True)),
    }
    return {name: round(value, 3) for name, value in numbers.items()}, {name: common.spread(found) for name, found in walls.items()}


def scale() -> tuple[dict[str, float], dict[str, Any]]:
    ours(2 * SLOTS, 0.0)
    cases: dict[str, Any] = {}
    process = psutil.Process()
    for trials in SIZES:
        held = process.memory_info().rss
        wall = ours(trials, 0.0)
        cases[f"{trials} trials"] = {"ms_per_trial": 1e3 * wall / trials, "kb_per_trial": (process.memory_info().rss - held) / 1e3 / trials}
        common.say(f"{trials} trials: {cases[f'{trials} trials']}")
    few, many = cases[f"{SIZES[0]} trials"], cases[f"{SIZES[-1]} trials"]
    numbers = {
        "ms_per_trial_growth": many["ms_per_trial"] / few["ms_per_trial"],
        "memory_growth": many["kb_per_trial"] / max(few["kb_per_trial"], 1.0),
    }
    return {name: round(value, 3) for name, value in numbers.items()}, cases


def ours(trials: int, seconds: float) -> float:
    """Seconds that our search takes."""
    from raybm.core.context import Context
    from raybm.core.events import Events
    from raybm.core.storage import open_storage
    from raybm.spec import JobSpec
    from raybm.sweep.search import Search
    from raybm.sweep.tuning import tune
    from raybm.sweep.work import FINISHED

    def work(config: dict[str, Any]) -> None:
        from ray import tune as raytune

        time.sleep(seconds)
        raytune.report({"validations": 1, "validation.loss": config["job"]["train"]["lr"], FINISHED: 1})

    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder:
        text = Path(folder) / "text.txt"
        text.write_text("the quick brown fox")
        job = JobSpec.parse(
            {
                "name": "overhead",
                "storage": f"{folder}/store",
                "resources": {"workers": 1},
                "task": {"kind": "causal_lm"},
                "model": {"ref": "scratch:llama", "max_length": 32, "config": {"hidden_size": 32}, "tokenizer": {"train": "char"}},
                "data": {"sources": [{"kind": "text", "path": str(text)}]},
                "sweep": {
                    "space": {"train.lr": {"loguniform": [1e-5, 1e-2]}},
                    "sampler": {"kind": "random"},
                    "budget": {"trials": trials},
                    "concurrent": SLOTS,
                },
            }
        )
        context = Context(
            job.canonical(), job.name, open_storage(job.storage), job.resources, Path(folder), Events(Path(folder)), lambda line: None
        )
        search = Search(job, context, "overhead")
        began = time.perf_counter()
        tune(search, SLOTS, work)
        wall = time.perf_counter() - began
        over = sum(point.end == "finished" for point in search.points)
        if over != trials:
            raise RuntimeError(f"{over} of {trials} trials were finished")
        return wall


def bare(trials: int, seconds: float) -> float:
    """Seconds that Ray Tune takes for the same, as its documentation shows it."""
    from ray import tune as raytune

    def work(config: dict[str, Any]) -> None:
        from ray import tune as raytune

        time.sleep(seconds)
        raytune.report({"loss": config["lr"]})

    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder:
        began = time.perf_counter()
        raytune.run(
            raytune.with_resources(work, {"CPU": 1}),
            config={"lr": raytune.loguniform(1e-5, 1e-2)},
            metric="loss",
            mode="min",
            num_samples=trials,
            max_concurrent_trials=SLOTS,
            reuse_actors=True,
            storage_path=folder,
            verbose=0,
        )
        return time.perf_counter() - began


if __name__ == "__main__":
    main()

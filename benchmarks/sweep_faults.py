"""What becomes of a sweep when its trials fail? Thirty trainings of a tiny language model, a third of which go wrong.

Two are killed once, two at every start, two raise an error that nobody foresaw, two are stopped in the middle (SIGSTOP: they neither end
nor answer), and two get a learning rate with which the loss is no number. Prints {"accounted", "hung", "leaked_placement_groups",
"leaked_actors"}: the share of the trials that ended as they should, and what is still there when the sweep is over. Those that were
killed or stopped once have to finish at their second start; the other faulty ones have to count as failed, with the reason; the twenty
sound ones have to finish.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import common

TRIALS = 30
SILENCE_S = 15.0
LEAVES_S = 60.0
"""That Ray has to clear away what ended."""
FAULTS = {
    2: "killed once",
    5: "killed always",
    8: "raises",
    11: "stopped once",
    14: "no number",
    17: "killed once",
    20: "killed always",
    23: "raises",
    26: "stopped once",
    29: "no number",
}
EXPECTED = {"killed always": "failed", "raises": "failed", "no number": "failed"}
"""Of the others: finished."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=2, help="Trials at a time.")
    given = parser.parse_args()
    from raybm.cluster import connect

    before = common.load()
    with (
        tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder,
        connect(cpus=given.slots + 1, say=common.say, dashboard=True),
    ):
        numbers, cases = measured(Path(folder), given.slots)
    common.report(numbers, cases, before)


def measured(folder: Path, slots: int) -> tuple[dict[str, float], dict[str, Any]]:
    from raybm import runner
    from raybm.core.context import Context
    from raybm.core.events import Events
    from raybm.core.storage import open_storage
    from raybm.spec import JobSpec
    from raybm.sweep.search import Search
    from raybm.sweep.tuning import tune
    from raybm.sweep.work import Alone

    job = JobSpec.parse(described(folder, slots))
    base = job.model_copy(update={"sweep": None})
    context = Context(base.canonical(), job.name, open_storage(job.storage), job.resources, folder, Events(folder), common.say)
    runner.run(base, Alone("faults"), context, nullcontext, last="prepare")
    search = Search(job, context, "faults")
    began = time.perf_counter()
    tune(search, slots, Faulty(folder))
    wall = time.perf_counter() - began
    ends: dict[str, Counter[str]] = {}
    right = 0
    for point in search.points:
        trial = point.trials[0]
        fault = FAULTS.get(trial.point, "sound")
        expected = EXPECTED.get(fault, "finished")
        right += trial.end == expected and bool(trial.error) == (expected == "failed")
        ends.setdefault(fault, Counter())[f"{trial.end}: {trial.error}" if trial.error else str(trial.end)] += 1
    groups, actors = left()
    numbers = {
        "accounted": round(right / TRIALS, 3),
        "hung": sum(point.end is None for point in search.points) + TRIALS - len(search.points),
        "leaked_placement_groups": groups,
        "leaked_actors": actors,
    }
    return numbers, {**{fault: dict(found) for fault, found in ends.items()}, "wall_s": round(wall, 1)}


def described(folder: Path, slots: int) -> dict[str, Any]:
    text = folder / "text.txt"
    text.write_text("".join(f"{number} red cats sit on {number} mats.\n\n" for number in range(400)))
    rates = [number * 1e12 if FAULTS.get(number) == "no number" else 1e-4 * (1 + number) for number in range(1, TRIALS + 1)]
    return {
        "name": "faults",
        "storage": str(folder / "store"),
        "resources": {"workers": 1},
        "task": {"kind": "causal_lm"},
        "model": {
            "ref": "scratch:llama",
            "max_length": 32,
            "config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
            "tokenizer": {"train": "char"},
        },
        "data": {"sources": [{"kind": "text", "path": str(text)}], "split": {"validation": 0.1, "test": 0.1}},
        "train": {"max_steps": 60, "validate_every_steps": 20, "stall_timeout_s": SILENCE_S, "zero": {"stage": 1}},
        "evaluate": None,
        "sweep": {"space": {"train.lr": rates}, "sampler": {"kind": "grid"}, "concurrent": slots},
    }


class Faulty:
    """A trial's work, with what goes wrong in it; who goes wrong only once leaves a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, config: dict[str, Any]) -> None:
        from raybm.sweep.work import run_trial

        fault = FAULTS.get(int(config["name"].split("-")[0]), "sound")
        mark = self.folder / f"{config['name']}.went-wrong"
        if fault == "raises":
            raise RuntimeError("nobody foresaw this")
        if fault.endswith("always") or (fault.endswith("once") and not mark.exists()):
            mark.touch()
            kind = signal.SIGKILL if fault.startswith("killed") else signal.SIGSTOP
            threading.Timer(0.5, lambda: os.kill(os.getpid(), kind)).start()
            time.sleep(0.3)  # so that it hits the training
        run_trial(config)


def left() -> tuple[int, int]:
    """Placement groups, and actors of trials, that are still there when Ray had time to clear them away."""
    import ray
    from ray.util import placement_group_table

    until = time.monotonic() + LEAVES_S
    while True:
        groups = sum(group["state"] != "REMOVED" for group in placement_group_table().values())
        alive = [actor for actor in ray._private.state.actors().values() if actor["State"] != "DEAD"]
        actors = sum(actor["ActorClassName"] == "ImplicitFunc" for actor in alive)
        if not groups + actors or time.monotonic() > until:
            return groups, actors
        time.sleep(1.0)


if __name__ == "__main__":
    main()

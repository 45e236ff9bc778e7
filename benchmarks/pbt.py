"""Is a population better than its members left alone? jobs/sweep_pretrain.yaml, by the command line.

The population (an exchange every 100 steps) beside as many fixed schedules, with the values that its members began with and as many steps:
what the best of each reaches. Prints {"pbt_val_loss", "fixed_val_loss", "pbt_test_loss", "fixed_test_loss", "vs_fixed"}: nats a token,
means over the seeds; vs_fixed is pbt_val_loss ÷ fixed_val_loss.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import common

JOB = common.JOBS / "sweep_pretrain.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="Passed on to `raybm run`.")
    given = parser.parse_args()
    common.require_data(JOB)
    before, cases = common.load(), {}
    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder:
        for seed in given.seeds:
            settings = {"seed": seed, "publish": None} | dict(text.split("=", 1) for text in given.settings)
            population = common.run_job(JOB, Path(folder) / "pbt", settings)
            schedules = common.run_job(JOB, Path(folder) / "fixed", settings | fixed(population))
            for side, done in {"pbt": population, "fixed": schedules}.items():
                cases[f"{side}, seed {seed}"] = case = scores(done)
                common.say(f"{side}, seed {seed}: {case}")
    means = {
        f"{side}_{split}_loss": statistics.mean(cases[f"{side}, seed {seed}"][split] for seed in given.seeds)
        for side in ("pbt", "fixed")
        for split in ("val", "test")
    }
    ratio = means["pbt_val_loss"] / means["fixed_val_loss"]
    common.report({name: round(value, 4) for name, value in (means | {"vs_fixed": ratio}).items()}, cases, before)


def fixed(population: Path) -> dict[str, Any]:
    """Settings of a sweep that leaves the members of the first generation as they began."""
    from raybm.core.storage import open_storage
    from raybm.sweep.past import Past

    past = Past(open_storage(str(population.parent.parent)), population.name)
    begun = [trials[0].start for trials in past.points.values() if trials[0].parent is None]
    sections = [past.job["train"] | {path.removeprefix("train."): value for path, value in start.items()} for start in begun]
    return {"sweep.space": json.dumps({"train": sections}), "sweep.sampler": json.dumps({"kind": "grid"}), "sweep.scheduler": None}


def scores(run: Path) -> dict[str, Any]:
    """Losses of the best one, and how its values went."""
    record = json.loads((common.artifact(run, "train") / "record.json").read_text())
    evaluation = json.loads((common.artifact(run, "evaluate") / "evaluation.json").read_text())
    train = record["view"]["train"]
    schedule = [{name: train[name] for name in ("lr", "weight_decay")}, *train["phases"]]
    return {"val": record["metrics"]["validation"]["loss"], "test": evaluation["test"]["loss"], "schedule": schedule}


if __name__ == "__main__":
    main()

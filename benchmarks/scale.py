"""A step of load that one replica cannot carry: how long until answers are in time again?

The engine takes half a second an answer and no CPU, and a replica holds four at once: eight requests a second. Open loop: 2 requests a
second, then as many as N replicas carry at 70 %.
Prints
  to_target_s    from the step to the first moment after which 95 % of what came in any 5 s was answered in 1.5 s
  to_replicas_s  from the step to N running replicas
  failed         requests without an answer
"""

from __future__ import annotations

import argparse
import threading
import time
from functools import partial
from typing import Any

import common
import endpoint
import numpy as np
import traffic

ANSWER_S, AT_ONCE = 0.5, 4
TARGET_S, WINDOW_S = 1.5, 5.0
BEFORE_S, BEFORE_RATE = 10.0, 2.0
LOAD = 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument(
        "--seconds", type=float, default=90.0, help="How long the high load lasts: more than to_target_s, or it was not seen."
    )
    parser.add_argument("--upscale-delay", type=float, default=2.0, help="autoscaling.upscale_delay_s")
    given = parser.parse_args()
    before = common.load()
    said = []
    for round_ in range(given.rounds):
        said.append(step(given.replicas, given.seconds, given.upscale_delay))
        common.say(f"round {round_ + 1}: {said[-1]}")
    cases = {key: common.spread([one[key] for one in said]) for key in said[0]}
    common.report({key: case["max" if key == "failed" else "median"] for key, case in cases.items()}, cases, before)


def model(replicas: int, delay_s: float) -> dict[str, Any]:
    return {
        "name": "paced",
        "ref": "file:/nowhere",
        "cpus": 0.1,
        "max_ongoing_requests": AT_ONCE,
        "max_queued_requests": 100_000,
        "autoscaling": {
            "max_replicas": replicas,
            "by": {"kind": "ongoing_requests", "target": AT_ONCE / 2},
            "upscale_delay_s": delay_s,
        },
    }


def step(replicas: int, seconds: float, delay_s: float) -> dict[str, float]:
    from peers import echo

    from raybm.serving.app import application
    from raybm.spec import ServeSpec

    spec = ServeSpec.parse({"models": [model(replicas, delay_s)]})
    loaders = {"paced": partial(echo.PacedEngine, ANSWER_S)}
    rate = replicas * AT_ONCE / ANSWER_S * LOAD
    with endpoint.serving({"raybm": lambda: application(spec, loaders)}, cpus=4) as url:
        asks = [traffic.chat("paced", "How long?", stream=False)]
        plan = traffic.Plan(f"{url}/raybm", asks, rates=[(BEFORE_S, BEFORE_RATE), (seconds, rate)])
        with traffic.sending(plan) as process, counting("paced") as counts:
            outcome = traffic.outcome(process)
    running = [at - outcome.epoch - BEFORE_S for at, count in counts if count >= replicas]
    return {
        "to_target_s": round(in_time(outcome.answers) - BEFORE_S, 1),
        "to_replicas_s": round(running[0], 1) if running else float("inf"),
        "failed": len(outcome.answers) - len(outcome.good()),
    }


def in_time(answers: list[traffic.Answer]) -> float:
    """The moment after which every window's 95th percentile is within the target; the last request's where that never comes."""
    began = np.array([answer.began for answer in answers])
    late = np.array([answer.seconds > TARGET_S for answer in answers])
    bad = [float(at) for at in np.sort(began) if late[(began >= at) & (began < at + WINDOW_S)].mean() > 0.05]
    return max([BEFORE_S, *bad])


class counting:
    """Running replicas of a model, twice a second, while the block runs: (seconds of the epoch, number)."""

    def __init__(self, model: str) -> None:
        self.model, self.counts, self.over = model, list[tuple[float, int]](), threading.Event()
        self.thread = threading.Thread(target=self._count)

    def __enter__(self) -> list[tuple[float, int]]:
        self.thread.start()
        return self.counts

    def __exit__(self, *_: Any) -> None:
        self.over.set()
        self.thread.join()

    def _count(self) -> None:
        from ray import serve

        while not self.over.wait(0.5):
            states = serve.status().applications["raybm"].deployments[self.model].replica_states
            self.counts.append((time.time(), states.get("RUNNING", 0)))


if __name__ == "__main__":
    main()

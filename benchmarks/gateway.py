"""What does the gateway cost? An engine that gives back 16 words, behind raybm and behind a bare FastAPI ingress on the same Serve.

Prints
  vs_bare_ingress  requests/s through raybm ÷ requests/s through the bare ingress; of 1, 16 and 64 clients the worst
  added_p50_ms     what raybm's gateway adds to the median answer, one client at a time
  added_p99_ms     the same of the 99th percentile
  vs_litellm       requests/s through raybm's `remote` engine ÷ requests/s through LiteLLM's proxy (one worker), both in front of the same
                   endpoint that gives back 16 words; of 1, 16 and 64 clients the worst
Under `cases`: each number of clients, streams too (`stream_16`), CPU milliseconds a request of proxy, gateway and replica, and
what the clients could have asked for at most (`clients_limit`: a server that does next to nothing).
LiteLLM is installed into an environment of its own the first time; `--against bare` leaves it out. Neither side asks for keys.
The bare ingress parses JSON, calls the handle and writes OpenAI's shape. It has no keys, limits, checks, deadline, metrics or log.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import common
import endpoint
import traffic
import venvs
import yaml

from raybm.core.ports import free_ports

TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
STREAMING_CLIENTS = 16
WARM_UP_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="Of each measurement.")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--against", nargs="+", choices=["bare", "litellm"], default=["bare", "litellm"])
    given = parser.parse_args()
    before = common.load()
    numbers: dict[str, float] = {}
    cases: dict[str, Any] = {}
    with ExitStack() as stack:
        upstream = stack.enter_context(endpoint.peer("upstream.py"))
        limit = traffic.send(plan(upstream, max(given.clients), False, given.seconds))
        proxy = stack.enter_context(litellm(upstream)) if "litellm" in given.against else None
        applications = {"raybm": raybm, "bare": bare, "remote": partial(remote, upstream)}
        if proxy is None:
            del applications["remote"]
        url = stack.enter_context(endpoint.serving(applications, cpus=6))
        sides = {name: Side(f"{url}/{name}", f"ray::ServeReplica:{name}:") for name in applications}
        if "bare" in given.against:
            pair = {name: sides[name] for name in ("raybm", "bare")}
            cases = compared(rounds(pair, given.clients, given.rounds, given.seconds), "raybm", "bare")
            one = cases[f"unary_{min(given.clients)}"]
            numbers = {"vs_bare_ingress": worst(cases)} | {
                f"added_{key}": round(one["raybm"][key]["median"] - one["bare"][key]["median"], 2) for key in ("p50_ms", "p99_ms")
            }
        if proxy is not None:
            pair = {"remote": sides["remote"], "litellm": proxy}
            others = compared(rounds(pair, given.clients, given.rounds, given.seconds), "remote", "litellm")
            numbers["vs_litellm"] = worst(others)
            cases |= {f"litellm_{name}": case for name, case in others.items()}
    common.report(numbers, cases | {"clients_limit": round(limit.requests_per_s)}, before)


@dataclass(frozen=True)
class Side:
    url: str
    mark: str
    """Stands in the command lines of its processes."""


def bare() -> Any:
    from peers import echo

    return echo.bare()


def raybm() -> Any:
    from peers import echo

    from raybm.serving.app import application
    from raybm.spec import ServeSpec

    model = {"name": "echo", "ref": "file:/nowhere", "max_ongoing_requests": echo.ROOM}
    return application(ServeSpec.parse({"models": [model]}), {"echo": echo.EchoEngine})


def remote(upstream: str) -> Any:
    from peers import echo

    from raybm.serving.app import build

    engine = {"kind": "remote", "url": f"{upstream}/v1", "model": "echo"}
    return build({"models": [{"name": "echo", "engine": engine, "max_ongoing_requests": echo.ROOM}]})


@contextmanager
def litellm(upstream: str) -> Iterator[Side]:
    command = venvs.binaries("litellm", ["litellm[proxy]==1.108.7"]) / "litellm"
    (port,) = free_ports(1)
    served = {"model_name": "echo", "litellm_params": {"model": "openai/echo", "api_base": f"{upstream}/v1", "api_key": "none"}}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        yaml.safe_dump({"model_list": [served], "general_settings": {"dangerously_permit_weak_or_unset_master_key": True}}, config)
        config.flush()
        flags = ["--config", config.name, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1", "--telemetry", "False"]
        with endpoint.server([command, *flags], f"http://127.0.0.1:{port}/health/liveliness", LITELLM_LOCAL_MODEL_COST_MAP="True"):
            yield Side(f"http://127.0.0.1:{port}", config.name)


def plan(url: str, clients: int, stream: bool, seconds: float) -> traffic.Plan:
    return traffic.Plan(url, [traffic.chat("echo", TEXT, stream=stream)], clients=clients, seconds=seconds, warm_up_s=WARM_UP_S)


def rounds(sides: Mapping[str, Side], clients: Sequence[int], count: int, seconds: float) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Case → side → what each round said. Every round asks both sides one after the other, in turning order."""
    cases = [(f"unary_{number}", number, False) for number in clients] + [(f"stream_{STREAMING_CLIENTS}", STREAMING_CLIENTS, True)]
    found: dict[str, dict[str, list[dict[str, float]]]] = {case: {name: [] for name in sides} for case, _, _ in cases}
    for name, side in sides.items():  # the first requests of a fresh process are slow
        checked(name, traffic.send(plan(side.url, STREAMING_CLIENTS, False, 1.0)))
    for round_ in range(count):
        order = sorted(sides, reverse=bool(round_ % 2))
        for case, number, stream in cases:
            for name in order:
                found[case][name].append(once(name, sides[name], number, stream, seconds))
            common.say(
                f"round {round_ + 1} {case}: " + ", ".join(f"{name} {found[case][name][-1]['requests_per_s']:.0f}/s" for name in order)
            )
    return found


def once(name: str, side: Side, clients: int, stream: bool, seconds: float) -> dict[str, float]:
    own = endpoint.processes(side.mark, "ray::ProxyActor", "haproxy") if side.mark.startswith("ray::") else endpoint.processes(side.mark)
    began = endpoint.cpu_s(own)
    outcome = checked(name, traffic.send(plan(side.url, clients, stream, seconds)))
    used = endpoint.cpu_s(own) - began
    return {
        "requests_per_s": outcome.requests_per_s,
        "p50_ms": outcome.ms(50),
        "p99_ms": outcome.ms(99),
        "cpu_ms": 1000 * used / outcome.requests_per_s / (WARM_UP_S + outcome.seconds),
        "clients_cpu_share": outcome.cpu_share,
    }


def checked(name: str, outcome: traffic.Outcome) -> traffic.Outcome:
    """Raises RuntimeError where an answer was none, or another one."""
    wrong = outcome.errors() or {answer.text: 1 for answer in outcome.answers if answer.text.strip() != TEXT}
    if wrong or not outcome.answers:
        raise RuntimeError(f"{name}: {wrong or 'no answer at all'}")
    return outcome


def compared(found: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]], ours: str, theirs: str) -> dict[str, Any]:
    """Of each case both sides' numbers over the rounds, and the median of the rounds' ratios of requests/s."""
    cases: dict[str, Any] = {}
    for case, sides in found.items():
        ratio = common.ratio(*([one["requests_per_s"] for one in sides[side]] for side in (ours, theirs)))
        each = {name: {key: common.spread([one[key] for one in said]) for key in said[0]} for name, said in sides.items()}
        cases[case] = {"ratio": ratio} | each
    return cases


def worst(cases: Mapping[str, Any]) -> float:
    return min(case["ratio"] for name, case in cases.items() if name.startswith("unary"))


if __name__ == "__main__":
    main()

"""What does the gateway cost? An engine that gives back 16 words, behind raybm and behind a bare FastAPI ingress on the same Serve.

Prints
  vs_bare_ingress  requests/s through raybm ÷ requests/s through the bare ingress; of 1, 16 and 64 clients the worst
  added_p50_ms     what raybm's gateway adds to the median answer, one client at a time
  added_p99_ms     the same of the 99th percentile
Under `cases`: each number of clients, streams too (`stream_16`), CPU milliseconds a request of proxy, gateway and replica, and
what the clients could have asked for at most (`clients_limit`: a server that does next to nothing).
The bare ingress parses JSON, calls the handle and writes OpenAI's shape. It has no keys, limits, checks, deadline, metrics or log.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import common
import endpoint
import traffic
from peers import echo

TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
STREAMING_CLIENTS = 16
WARM_UP_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="Of each measurement.")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    given = parser.parse_args()
    before = common.load()
    with endpoint.peer("upstream.py") as url:
        limit = traffic.send(plan(url, max(given.clients), False, given.seconds))
    with endpoint.serving({"raybm": raybm, "bare": echo.bare}, cpus=4) as url:
        measured = rounds({name: f"{url}/{name}" for name in ("raybm", "bare")}, given.clients, given.rounds, given.seconds)
    cases = {case: compared(sides, "raybm", "bare") for case, sides in measured.items()}
    one = cases[f"unary_{min(given.clients)}"]
    numbers = {
        "vs_bare_ingress": min(case["ratio"] for name, case in cases.items() if name.startswith("unary")),
        "added_p50_ms": round(one["raybm"]["p50_ms"]["median"] - one["bare"]["p50_ms"]["median"], 2),
        "added_p99_ms": round(one["raybm"]["p99_ms"]["median"] - one["bare"]["p99_ms"]["median"], 2),
    }
    common.report(numbers, cases | {"clients_limit": round(limit.requests_per_s)}, before)


def raybm() -> Any:
    from raybm.serving.app import application
    from raybm.spec import ServeSpec

    model = {"name": "echo", "ref": "file:/nowhere", "max_ongoing_requests": echo.ROOM}
    return application(ServeSpec.parse({"models": [model]}), {"echo": echo.EchoEngine})


def plan(url: str, clients: int, stream: bool, seconds: float) -> traffic.Plan:
    return traffic.Plan(url, [traffic.chat("echo", TEXT, stream=stream)], clients=clients, seconds=seconds, warm_up_s=WARM_UP_S)


def rounds(urls: Mapping[str, str], clients: Sequence[int], count: int, seconds: float) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Case → side → what each round said. Every round asks all sides one after the other, in turning order."""
    cases = [(f"unary_{number}", number, False) for number in clients] + [(f"stream_{STREAMING_CLIENTS}", STREAMING_CLIENTS, True)]
    found: dict[str, dict[str, list[dict[str, float]]]] = {case: {name: [] for name in urls} for case, _, _ in cases}
    for name, url in urls.items():  # the first requests of a fresh process are slow
        checked(name, traffic.send(plan(url, STREAMING_CLIENTS, False, 1.0)))
    for round_ in range(count):
        order = list(urls)
        order = order[round_ % len(order) :] + order[: round_ % len(order)]
        for case, number, stream in cases:
            for name in order:
                found[case][name].append(once(name, plan(urls[name], number, stream, seconds)))
            common.say(
                f"round {round_ + 1} {case}: " + ", ".join(f"{name} {found[case][name][-1]['requests_per_s']:.0f}/s" for name in order)
            )
    return found


def once(name: str, asked: traffic.Plan) -> dict[str, float]:
    own = endpoint.processes(f"ray::ServeReplica:{name}:", "ray::ProxyActor")
    began = endpoint.cpu_s(own)
    outcome = checked(name, traffic.send(asked))
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


def compared(sides: Mapping[str, Sequence[Mapping[str, float]]], ours: str, theirs: str) -> dict[str, Any]:
    """Each side's numbers over the rounds, and the median of the rounds' ratios of requests/s."""
    each = {name: {key: common.spread([one[key] for one in rounds_]) for key in rounds_[0]} for name, rounds_ in sides.items()}
    pairs = zip(sides[ours], sides[theirs], strict=True)
    ratio = statistics.median(mine["requests_per_s"] / other["requests_per_s"] for mine, other in pairs)
    return {"ratio": round(ratio, 3)} | each


if __name__ == "__main__":
    main()

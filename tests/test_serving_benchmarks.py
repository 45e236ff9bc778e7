"""The benchmarks of serving: what they say of a load, without a measurement."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from raybm.spec import ServeSpec

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NAMES = ("gateway", "serve_encoder", "serve_llm", "knobs", "cold_start", "scale", "soak", "faults")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def imported(name: str) -> ModuleType:
        return importlib.import_module(name)

    return imported


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_measures(name: str) -> None:
    out = subprocess.run([sys.executable, BENCHMARKS / f"{name}.py", "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert "Prints" in out.stdout


def test_models_that_are_measured_are_in_order(load: Any) -> None:
    """Their other numbers take minutes to come."""
    ServeSpec.parse({"models": [load("scale").model(4, 2.0)]})
    ServeSpec.parse({"models": [load("cold_start").MODEL]})
    ServeSpec.parse({"models": load("soak").MODELS})
    ServeSpec.parse({"models": load("knobs").encoders()})


class Server(BaseHTTPRequestHandler):
    """Answers as the prompt says: whole, refused, or a stream that is complete, cut or ends with an error event."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        content = body["messages"][0]["content"]
        self.send_response(503 if content == "refused" else 200)
        self.end_headers()
        if content == "refused":
            self.wfile.write(b"no room")
        elif content == "garbled":
            self.wfile.write(b"<html>")
        elif not body["stream"]:
            message = {"choices": [{"message": {"content": "two words"}}], "usage": {"completion_tokens": 2}}
            self.wfile.write(json.dumps(message).encode())
        else:
            for word in ("two ", "words"):
                self.event({"choices": [{"delta": {"content": word}}]})
            if content == "broken":
                self.event({"error": {"code": "replica_lost", "message": "gone"}})
            elif content == "complete":
                self.event({"choices": [], "usage": {"completion_tokens": 2}})
                self.wfile.write(b"data: [DONE]\n\n")

    def event(self, data: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")

    def log_message(self, *_: Any) -> None:
        """Not into the tests' output."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.integration
def test_load_tells_whole_answers_from_cut_and_refused_ones(load: Any, url: str) -> None:
    traffic = load("traffic")
    asks = [traffic.chat("m", content, stream=True) for content in ("complete", "cut", "broken", "refused")]
    asks += [traffic.chat("m", content, stream=False) for content in ("whole", "garbled")]
    outcome = traffic.send(traffic.Plan(url, asks, clients=2, requests=12))
    assert len(outcome.answers) == 12
    by_ask = {answer.ask: answer for answer in outcome.answers}
    assert [by_ask[n].cut for n in range(6)] == [False, True, False, False, False, False]
    assert [bool(by_ask[n].error) for n in range(6)] == [False, False, True, True, False, True]
    assert (by_ask[0].text, by_ask[0].tokens, len(by_ask[0].gaps)) == ("two words", 2, 2)
    assert (by_ask[4].text, by_ask[4].tokens, by_ask[4].gaps) == ("two words", 2, [])
    assert len(outcome.good()) == 4
    assert outcome.errors() == {"cut": 2, "event: replica_lost gone": 2, "503 no room": 2, "an answer in another shape": 2}


@pytest.mark.integration
def test_load_comes_at_a_rate_and_not_when_it_is_answered(load: Any, url: str) -> None:
    traffic = load("traffic")
    plan = traffic.Plan(url, [traffic.chat("m", "whole", stream=False)], rates=[(0.2, 50.0), (0.2, 200.0)])
    outcome = traffic.send(plan)
    early = sum(answer.began < 0.2 for answer in outcome.answers)
    assert 0 < early < len(outcome.answers) - early
    assert outcome.seconds == pytest.approx(0.4)


def answer(load: Any, **given: Any) -> Any:
    usual = {"ask": 0, "began": 0.0, "seconds": 0.1, "status": 200, "error": "", "gaps": [], "tokens": 1, "text": "", "cut": False}
    return load("traffic").Answer(**usual | given)


def test_only_good_answers_count(load: Any) -> None:
    answers = [answer(load, seconds=0.2), answer(load, error="503"), answer(load, cut=True), answer(load, seconds=0.4, gaps=[0.1, 0.3])]
    outcome = load("traffic").Outcome(answers, seconds=2.0, epoch=0.0, cpu_share=0.1)
    assert (outcome.requests_per_s, outcome.tokens_per_s, outcome.ms(50), outcome.itl_ms(50)) == (1.0, 1.0, 300.0, 300.0)


def test_gateway_reports_the_worst_number_of_clients_and_no_streams(load: Any) -> None:
    gateway = load("gateway")
    said = {"unary_1": (9.0, 10.0), "unary_16": (8.0, 10.0), "stream_16": (5.0, 10.0)}
    found = {case: {"ours": [{"requests_per_s": a}], "theirs": [{"requests_per_s": b}]} for case, (a, b) in said.items()}
    cases = gateway.compared(found, "ours", "theirs")
    assert cases["stream_16"]["ratio"] == 0.5
    assert gateway.worst(cases) == 0.8


def test_a_step_of_load_is_carried_when_no_window_is_late_any_more(load: Any) -> None:
    scale = load("scale")
    answers = [answer(load, began=n / 10, seconds=3.0 if 12 <= n / 10 < 20 else 0.5) for n in range(600)]
    assert scale.in_time(answers) == pytest.approx(20, abs=0.5)
    assert scale.in_time([answer(load, began=n / 10, seconds=0.5) for n in range(600)]) == scale.BEFORE_S


def test_memory_that_grows_is_told_from_memory_that_wobbles(load: Any) -> None:
    soak = load("soak")
    grows = soak.slope([(60.0 * n, 100 + n + n % 2) for n in range(50)])
    wobbles = soak.slope([(60.0 * n, 100 + 5 * (n % 2)) for n in range(50)])
    assert grows["mb_per_hour"] == pytest.approx(60, abs=1)
    assert (soak.harmless(grows), soak.harmless(wobbles)) == (False, True)


def test_faults_tells_wrong_texts_from_near_ties(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    faults, traffic = load("faults"), load("traffic")
    monkeypatch.setattr(faults.ties, "near_tie", lambda folder, prompt, expected, other: other == "tied")
    asks = [traffic.chat("chat", "p", stream=True), traffic.Ask("/v1/classify", {}), traffic.chat("chat", "p", stream=False)]
    answers = [
        answer(load, text="right", gaps=[0.1, 0.7]),
        answer(load, text="tied", gaps=[0.1]),
        answer(load, ask=2, text="wrong"),
        answer(load, ask=1, text="L"),
        answer(load, ask=1, text="M"),
        answer(load, ask=2, status=503, error="503"),
        answer(load, text="rig", gaps=[9.0], cut=True),
    ]
    outcome = traffic.Outcome(answers, seconds=1.0, epoch=0.0, cpu_share=0.1)
    numbers, _ = faults.judged(outcome, asks, ["p"], ["right"], {1: "L"}, "folder")
    assert numbers == {"failed": 1, "cut_streams": 1, "wrong_text": 2, "near_ties": 1, "worst_gap_s": 0.7}

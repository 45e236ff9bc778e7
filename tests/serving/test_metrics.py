"""What the gateway and the replica count, and the spans they leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from ray.serve import context

from raybm.engines.protocol import Delta
from raybm.serving.auth import new_api_key
from raybm.serving.gateway import Gateway
from raybm.serving.metrics import version
from raybm.serving.records import TOGETHER_S, Records
from raybm.serving.routes import create_app
from raybm.serving.tracing import ENDPOINT, Traced, begin, tracer
from raybm.serving.watch import Origin, Watch
from raybm.spec.serve import GatewaySpec
from tests.fakes import EchoEngine, LengthClassifier, LocalModel
from tests.serving.gateway import ask, chat, make_app, nothing_missing

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "the words of the client"


def samples(app: Any, **kwargs: Any) -> dict[tuple[str, ...], float]:
    """(name, model, version, …) → value, of the counters and the histograms' counts."""
    response = ask(app, "GET", "/metrics", **kwargs)
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain")
    found = [sample for family in text_string_to_metric_families(response.text) for sample in family.samples]
    return {
        (s.name, s.labels["model"], s.labels["version"], *(v for k, v in s.labels.items() if k not in ("model", "version"))): s.value
        for s in found
        if s.name.endswith(("_total", "_count"))
    }


def test_page_of_metrics() -> None:
    models = {"chat": LocalModel(EchoEngine()), "size": LocalModel(LengthClassifier())}
    gateway = Gateway(GatewaySpec(), models, nothing_missing, versions={"chat": "3"})
    app = create_app(gateway)
    ask(app, "POST", "/v1/chat/completions", json=chat("one two three", stream=True))
    ask(app, "POST", "/v1/chat/completions", json=chat("!broken word", stream=True))
    ask(app, "POST", "/v1/chat/completions", json=chat("!full"))
    ask(app, "POST", "/v1/classify", json={"model": "size", "input": "a b"})
    ask(app, "POST", "/v1/classify", json={"model": "stranger", "input": "a b"})
    ask(app, "GET", "/health")
    seen = samples(app)
    assert seen["raybm_requests_total", "chat", "3", "200"] == 2 and seen["raybm_requests_total", "chat", "3", "503"] == 1
    assert seen["raybm_errors_total", "chat", "3", "internal_error"] == 1 and seen["raybm_errors_total", "chat", "3", "overloaded"] == 1
    assert seen["raybm_errors_total", "", "", "model_not_found"] == 1
    assert seen["raybm_ttft_seconds_count", "chat", "3"] == 2 and seen["raybm_itl_seconds_count", "chat", "3"] == 2
    assert seen["raybm_tokens_total", "chat", "3", "completion"] == 4 and seen["raybm_tokens_total", "size", "", "prompt"] == 2
    assert seen["raybm_request_seconds_count", "size", ""] == 1 and "stranger" not in str(seen)

    ask(app, "POST", "/v1/chat/completions", json=chat("!broken word", stream=True, n=3))  # of several choices one error is told
    ask(app, "GET", "/v1/models/stranger")
    seen = samples(app)
    assert seen["raybm_errors_total", "chat", "3", "internal_error"] == 2 and seen["raybm_errors_total", "", "", "model_not_found"] == 2


def test_page_of_metrics_asks_for_a_key_where_there_are_keys_and_names_no_tenant() -> None:
    key, digest = new_api_key()
    app = make_app(api_keys=[{"tenant": "acme", "sha256": digest}])
    assert ask(app, "GET", "/metrics").status_code == 401
    ask(app, "POST", "/v1/chat/completions", json=chat("hello"), key=key)
    assert "acme" not in str(samples(app, key=key)) and "acme" not in ask(app, "GET", "/metrics", key=key).text


def test_version_of_a_reference() -> None:
    refs = {"registry:sentiment@3": "3", "hub:org/name@abc": "abc", "package:x": "", None: ""}
    assert {ref: version(ref) for ref in refs} == refs


def recorded() -> tuple[Any, InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("test"), exporter


class Traceable(LocalModel):
    """What the gateway tells a replica."""

    async def complete(self, request: Any) -> Any:
        self.origin = Origin()
        return await super().complete(request)


def test_spans_go_on_from_the_clients(caplog: pytest.LogCaptureFixture) -> None:
    made, exporter = recorded()
    model = Traceable(EchoEngine())
    app = Traced(make_app(models={"chat": model}), made)
    headers = {"traceparent": CLIENT, "authorization": "Bearer secret-key", "tracestate": "a=b"}
    ask(app, "POST", "/v1/chat/completions", json=chat(SECRET), headers=headers)
    with Watch("chat", "", made).request("complete", model.origin):
        pass
    assert not caplog.records  # OpenTelemetry warns of a span that is ended twice
    replica, gateway = sorted(exporter.get_finished_spans(), key=lambda span: span.name)[::-1]
    assert gateway.name == "POST /v1/chat/completions" and gateway.parent.span_id == 0xB7AD6B7169203331
    assert gateway.attributes["http.response.status_code"] == 200 and gateway.attributes["gen_ai.request.model"] == "chat"
    assert replica.name == "replica complete" and replica.parent.span_id == gateway.context.span_id
    assert {span.context.trace_id for span in (gateway, replica)} == {0x0AF7651916CD43DD8448EB211C80319C}
    written = gateway.to_json() + replica.to_json()
    assert SECRET not in written and "secret-key" not in written


@pytest.mark.parametrize("value", ["nonsense", "00-0-0-0", ""])
def test_what_is_no_trace_context_begins_a_trace(value: str) -> None:
    made, exporter = recorded()
    ask(Traced(make_app(), made), "GET", "/nowhere/secret", headers={"traceparent": value})
    (span,) = exporter.get_finished_spans()
    assert span.parent is None and span.attributes["http.response.status_code"] == 404 and "secret" not in span.to_json()


def test_no_spans_without_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDPOINT, raising=False)
    assert not begin(tracer("raybm"), "x", {}).is_recording()
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    assert begin(tracer("raybm"), "x", {}).is_recording()


def test_metrics_in_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Serve adds the tags of the replica."""
    replica = SimpleNamespace(app_name="raybm", deployment="chat", replica_tag="x")
    monkeypatch.setattr(context, "_get_internal_replica_context", lambda: replica)
    watch = Watch("chat", "3", recorded()[0])
    watch.started({"process": 1.0})
    watch.batch(3)  # without a loop: told at once
    with watch.request("complete", Origin()):
        pass


class Metric:
    def __init__(self) -> None:
        self.told: list[tuple[float, tuple[str, ...]]] = []

    def tell(self, value: float, tags: tuple[str, ...]) -> None:
        self.told.append((value, tags))


def test_records_are_told_together() -> None:
    counter, histogram, records = Metric(), Metric(), Records()

    async def three(seconds: float) -> None:
        for place in range(3):
            records.count(counter, 2, "a")
            records.count(counter, 1, "b")
            records.observe(histogram, place / 10, "a", "3")
        assert not counter.told and not histogram.told
        async with asyncio.timeout(seconds):
            while not counter.told:
                await asyncio.sleep(TOGETHER_S)

    with pytest.raises(TimeoutError):
        asyncio.run(three(0.0))
    asyncio.run(three(10.0))  # another loop, as the first was gone before it could tell
    assert counter.told == [(12, ("a",)), (6, ("b",))]
    assert histogram.told == [(0.0, ("a", "3")), (0.1, ("a", "3")), (0.2, ("a", "3"))] * 2
    records.count(counter, 5, "a")
    assert counter.told[2:] == [(5, ("a",))] and len(histogram.told) == 6  # without a loop, at once


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def three() -> AsyncGenerator[Delta, None]:
    for _ in range(3):
        yield Delta("x", 2, 10)


def test_what_a_replica_has_under_way() -> None:
    clock = Clock()
    watch = Watch("chat", "", recorded()[0], clock)

    async def go() -> None:
        nothing = {"waiting": 0, "tokens": 0, "ttft_s": 0}
        assert watch.stats() == nothing
        first, second = watch.tokens(three()), watch.tokens(three())
        clock.now += 1
        await anext(first)
        assert watch.stats() == {"waiting": 0, "tokens": 12, "ttft_s": 0}
        await anext(first)
        stuck = watch.tokens(stuck_source())
        waiting = asyncio.ensure_future(anext(stuck))
        await asyncio.sleep(0)
        clock.now += 5
        assert watch.stats() == {"waiting": 1, "tokens": 14, "ttft_s": 5}  # the age of what waits
        waiting.cancel()
        await asyncio.wait([waiting])
        with watch.request("stream", Origin(sent=0)):  # asked for long ago: what waited for the replica counts too
            await anext(second)
        assert watch.stats()["ttft_s"] > 1e6
        await first.aclose()
        await second.aclose()
        clock.now += 31
        assert watch.stats() == nothing
        with watch.rows(5):
            with watch.computing(2):
                assert watch.stats()["waiting"] == 3
            assert watch.stats()["waiting"] == 5
        assert watch.stats() == nothing

    asyncio.run(go())


async def stuck_source() -> AsyncGenerator[Delta, None]:
    await asyncio.Event().wait()
    yield Delta("", 0, 0)

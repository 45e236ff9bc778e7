"""What the gateway counts: for Prometheus through Ray's exporter (which puts `ray_` before each name), and for its own /metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import prometheus_client
from prometheus_client import CollectorRegistry, generate_latest
from ray.serve import metrics
from starlette.responses import Response

from raybm.serving.exported import Exported
from raybm.spec.serve import model_of

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]
_BETWEEN_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10]


def version(ref: str | None) -> str:
    """What a reference names behind its @ (a registry's version or alias, a revision of the hub), or ""."""
    return (ref or "").partition("@")[2]


class _Counter:
    """Counted in both places; the tenants' names go to Ray's exporter alone."""

    def __init__(self, name: str, text: str, tags: Sequence[str], registry: CollectorRegistry, exported: Exported) -> None:
        self._exported = exported
        self._ray = metrics.Counter(name, text, tag_keys=(*tags, "tenant"))
        self._own = cache(prometheus_client.Counter(name, text, tags, registry=registry).labels)
        self._tags = tags

    def add(self, count: float, tags: Mapping[str, str], tenant: str) -> None:
        self._exported.count(self._ray, count, {**tags, "tenant": tenant})
        self._own(*(tags[tag] for tag in self._tags)).inc(count)


class _Histogram:
    def __init__(self, name: str, text: str, boundaries: Sequence[float], registry: CollectorRegistry, exported: Exported) -> None:
        self._exported = exported
        self._ray = metrics.Histogram(name, text, boundaries=list(boundaries), tag_keys=("model", "version"))
        self._own = cache(prometheus_client.Histogram(name, text, ("model", "version"), buckets=boundaries, registry=registry).labels)

    def observe(self, value: float, tags: Mapping[str, str]) -> None:
        self._exported.observe(self._ray, value, tags)
        self._own(tags["model"], tags["version"]).observe(value)


class Metrics:
    """`model` and `tenant` are "" for requests that named none there is: strangers must not be able to make new time series."""

    def __init__(self, versions: Mapping[str, str] | None = None) -> None:
        """`versions`: of the models; one that is not in it has "" for its version."""
        self._versions = versions or {}
        self._registry = CollectorRegistry()
        self.exported = Exported()
        told = self._registry, self.exported
        of_model = ("model", "version")
        self._requests = _Counter("raybm_requests_total", "Requests answered.", (*of_model, "status"), *told)
        self._errors = _Counter("raybm_errors_total", "Errors told, also those in begun streams.", (*of_model, "code"), *told)
        self._tokens = _Counter("raybm_tokens_total", "Tokens read and written.", (*of_model, "kind"), *told)
        self._cached = _Counter("raybm_cached_total", "Answers given again from the gateway's memory.", of_model, *told)
        self._latency = _Histogram("raybm_request_seconds", "First byte in to last byte out.", SECONDS, *told)
        self._ttft = _Histogram("raybm_ttft_seconds", "To the first token of a stream.", SECONDS, *told)
        self._itl = _Histogram("raybm_itl_seconds", "From a token of a stream to the next.", _BETWEEN_S, *told)

    def request(self, model: str, tenant: str, status: int, seconds: float) -> None:
        tags = self._tags(model)
        self._requests.add(1, {**tags, "status": str(status)}, tenant)
        self._latency.observe(seconds, tags)

    def error(self, model: str, tenant: str, code: str) -> None:
        """`code`: of the OpenAI-shaped error."""
        self._errors.add(1, {**self._tags(model), "code": code}, tenant)

    def cached(self, model: str, tenant: str) -> None:
        self._cached.add(1, self._tags(model), tenant)

    def first_token(self, model: str, seconds: float) -> None:
        self._ttft.observe(seconds, self._tags(model))

    def next_tokens(self, model: str, seconds: float, tokens: int) -> None:
        """A piece of so many tokens came so long after the one before it."""
        self._itl.observe(seconds / max(tokens, 1), self._tags(model))

    def tokens(self, model: str, tenant: str, prompt: int, completion: int) -> None:
        for kind, count in (("prompt", prompt), ("completion", completion)):
            if count:
                self._tokens.add(count, {**self._tags(model), "kind": kind}, tenant)

    def page(self) -> Response:
        """What this gateway process has counted, in Prometheus' text format."""
        return Response(generate_latest(self._registry), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    def _tags(self, model: str) -> dict[str, str]:
        return {"model": model, "version": self._versions.get(model_of(model), "")}

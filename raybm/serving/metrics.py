"""What the gateway counts: for Prometheus through Ray's exporter (which puts `ray_` before each name), and for its own /metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import prometheus_client
from prometheus_client import CollectorRegistry, generate_latest
from ray.serve import metrics
from starlette.responses import Response

from raybm.serving.records import Histogram, Records, Tags
from raybm.spec.serve import model_of

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]
_BETWEEN_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10]


def version(ref: str | None) -> str:
    """What a reference names behind its @ (a registry's version or alias, a revision of the hub), or ""."""
    return (ref or "").partition("@")[2]


class _Counter:
    """Of `tags` and the tenant, whose name goes to Ray's exporter alone."""

    def __init__(self, name: str, text: str, tags: Sequence[str], registry: CollectorRegistry) -> None:
        self._tags = (*tags, "tenant")
        self._ray = metrics.Counter(name, text, tag_keys=self._tags)
        self._own = cache(prometheus_client.Counter(name, text, tags, registry=registry).labels)

    def tell(self, value: float, tags: Tags) -> None:
        self._ray.inc(value, dict(zip(self._tags, tags, strict=True)))
        self._own(*tags[:-1]).inc(value)


class _Histogram(Histogram):
    def __init__(self, name: str, text: str, boundaries: Sequence[float], tags: Sequence[str], registry: CollectorRegistry) -> None:
        super().__init__(name, text, boundaries, tags)
        self._own = cache(prometheus_client.Histogram(name, text, tags, buckets=boundaries, registry=registry).labels)

    def tell(self, value: float, tags: Tags) -> None:
        super().tell(value, tags)
        self._own(*tags).observe(value)


class Metrics:
    """`model` and `tenant` are "" for requests that named none there is: strangers must not be able to make new time series."""

    def __init__(self, versions: Mapping[str, str] | None = None) -> None:
        """`versions`: of the models; one that is not in it has "" for its version."""
        self._versions = versions or {}
        self._registry = registry = CollectorRegistry()
        self._records = records = Records()
        self._count, self._observe = records.count, records.observe
        tags = ("model", "version")
        self._requests = _Counter("raybm_requests_total", "Requests answered.", (*tags, "status"), registry)
        self._errors = _Counter("raybm_errors_total", "Errors told, also those in begun streams.", (*tags, "code"), registry)
        self._tokens = _Counter("raybm_tokens_total", "Tokens read and written.", (*tags, "kind"), registry)
        self._cached = _Counter("raybm_cached_total", "Answers given again from the gateway's memory.", tags, registry)
        self._latency = _Histogram("raybm_request_seconds", "First byte in to last byte out.", SECONDS, tags, registry)
        self._ttft = _Histogram("raybm_ttft_seconds", "To the first token of a stream.", SECONDS, tags, registry)
        self._itl = _Histogram("raybm_itl_seconds", "From a token of a stream to the next.", _BETWEEN_S, tags, registry)

    def request(self, model: str, tenant: str, status: int, seconds: float) -> None:
        version = self._version(model)
        self._count(self._requests, 1, model, version, str(status), tenant)
        self._observe(self._latency, seconds, model, version)

    def error(self, model: str, tenant: str, code: str) -> None:
        """`code`: of the OpenAI-shaped error."""
        self._count(self._errors, 1, model, self._version(model), code, tenant)

    def cached(self, model: str, tenant: str) -> None:
        self._count(self._cached, 1, model, self._version(model), tenant)

    def first_token(self, model: str, seconds: float) -> None:
        self._observe(self._ttft, seconds, model, self._version(model))

    def next_tokens(self, model: str, seconds: float, tokens: int) -> None:
        """A piece of so many tokens came so long after the one before it."""
        self._observe(self._itl, seconds / max(tokens, 1), model, self._version(model))

    def tokens(self, model: str, tenant: str, prompt: int, completion: int) -> None:
        for kind, count in (("prompt", prompt), ("completion", completion)):
            if count:
                self._count(self._tokens, count, model, self._version(model), kind, tenant)

    def page(self) -> Response:
        """What this gateway process has counted, in Prometheus' text format."""
        self._records.tell()
        return Response(generate_latest(self._registry), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    def _version(self, model: str) -> str:
        return self._versions.get(model_of(model), "")

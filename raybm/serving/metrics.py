"""What the gateway counts, for Prometheus through Ray's exporter (which puts `ray_` before each name)."""

from __future__ import annotations

from ray.serve import metrics

_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]


class Metrics:
    """`model` and `tenant` are "" for requests that named none there is: strangers must not be able to make new time series."""

    def __init__(self) -> None:
        self._requests = metrics.Counter("raybm_requests_total", "Requests answered.", tag_keys=("model", "tenant", "status"))
        self._latency = metrics.Histogram(
            "raybm_request_seconds", "First byte in to last byte out.", boundaries=_SECONDS, tag_keys=("model",)
        )
        self._ttft = metrics.Histogram("raybm_ttft_seconds", "To the first token of a stream.", boundaries=_SECONDS, tag_keys=("model",))
        self._tokens = metrics.Counter("raybm_tokens_total", "Tokens read and written.", tag_keys=("model", "tenant", "kind"))

    def request(self, model: str, tenant: str, status: int, seconds: float) -> None:
        self._requests.inc(1, {"model": model, "tenant": tenant, "status": str(status)})
        self._latency.observe(seconds, {"model": model})

    def first_token(self, model: str, seconds: float) -> None:
        self._ttft.observe(seconds, {"model": model})

    def tokens(self, model: str, tenant: str, prompt: int, completion: int) -> None:
        for kind, count in (("prompt", prompt), ("completion", completion)):
            if count:
                self._tokens.inc(count, {"model": model, "tenant": tenant, "kind": kind})

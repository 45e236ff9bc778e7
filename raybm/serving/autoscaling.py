"""Policies of Serve's autoscaler, in its controller: what the replicas report (serving/watch.py) → how many there should be.

Serve bounds the answer by min_replicas and max_replicas, waits for the delays, and starts the first replica at once when a request comes
to none. It pickles these classes by value, so that its controller need not have raybm.
"""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingContext

from raybm.spec.autoscaling import Autoscaling

Decision = tuple[float, dict[str, Any]]
REPORT_S = 1.0
"""Between what handles and replicas report. Serve's own 10 s are how long a request to a model without replicas waited for the first
to be started (ray 2.60: what is pushed at once has the counts from before the request)."""
AT_MOST = 2.0  # times as many at once: a time to the first token says that there are too few, not how many


def config(scale: Autoscaling, room: int) -> dict[str, Any]:
    """Serve's `autoscaling_config`. `room`: requests that a replica works on at once."""
    policies: dict[str, tuple[type, dict[str, Any]]] = {
        "queue": (QueuePolicy, {"room": room}),
        "tokens_in_flight": (TokensPolicy, {}),
        "ttft": (FirstTokenPolicy, {}),
    }
    told: dict[str, Any] = {
        "min_replicas": scale.min_replicas,
        "max_replicas": scale.max_replicas,
        "upscale_delay_s": scale.upscale_delay_s,
        "downscale_delay_s": scale.downscale_delay_s,
        "look_back_period_s": scale.look_back_s,
        "metrics_interval_s": min(REPORT_S, scale.look_back_s / 2),
    }
    if scale.by.kind == "ongoing_requests":  # Serve's own
        return told | {"target_ongoing_requests": scale.by.target}
    policy, more = policies[scale.by.kind]
    settings = {name: value for name, value in scale.by.canonical().items() if name != "kind"}
    return told | {"policy": {"policy_function": f"{__name__}:{policy.__name__}", "policy_kwargs": settings | more}}


def _of_replicas(context: AutoscalingContext, name: str) -> list[float]:
    """What the running replicas report, a mean of the time looked back on each."""
    return list(((context.aggregated_metrics or {}).get(name) or {}).values())


class QueuePolicy:
    def __init__(self, target: float, room: int) -> None:
        self.target, self.room = target, room

    def __call__(self, context: AutoscalingContext) -> Decision:
        now = context.current_num_replicas
        waiting = context.total_queued_requests + sum(_of_replicas(context, "waiting"))
        if waiting > self.target * now:
            return waiting / self.target, {}
        if waiting > 0:
            return now, {}
        return min(now, math.ceil(context.total_num_requests / self.room)), {}


class TokensPolicy:
    def __init__(self, target: float) -> None:
        self.target = target

    def __call__(self, context: AutoscalingContext) -> Decision:
        tokens = sum(_of_replicas(context, "tokens"))
        running = context.total_running_requests
        if running > 0:  # a request that waits will bring as many as one that runs has
            tokens *= 1 + context.total_queued_requests / running
        at_least = 1 if context.total_num_requests > 0 else 0
        return max(at_least, tokens / self.target), {}


class FirstTokenPolicy:
    def __init__(self, target_s: float) -> None:
        self.target_s = target_s

    def __call__(self, context: AutoscalingContext) -> Decision:
        now = context.current_num_replicas
        if context.total_num_requests <= 0:
            return max(now - 1, 0), {}
        seconds = max(_of_replicas(context, "ttft_s"), default=0.0)
        if seconds > self.target_s:
            return now * min(seconds / self.target_s, AT_MOST), {}
        if seconds < self.target_s / 2:
            return max(now - 1, 1), {}
        return now, {}

"""What the autoscaling policies decide, and what Serve is told of them."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve._private.build_app import build_app
from ray.serve._private.config import DeploymentConfig
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from raybm import ops
from raybm.core.errors import SpecError
from raybm.serving.app import application
from raybm.serving.autoscaling import config
from raybm.spec import ServeSpec
from raybm.spec.autoscaling import Autoscaling
from raybm.spec.serve import ServedModel
from tests.fakes import EchoEngine

ROOM = 8


def decide(by: dict[str, Any], replicas: int, requests: float = 0, queued: float = 0, **reported: list[float]) -> float:
    """How many replicas there should be, asked as Serve's controller asks: of the class that went through its pickle."""
    told = AutoscalingConfig(**config(Autoscaling.parse({"max_replicas": 9, "by": by}), ROOM))
    policy = told.policy.get_policy()(**told.policy.policy_kwargs)
    context = AutoscalingContext(
        deployment_id=None,
        deployment_name="chat",
        app_name="raybm",
        current_num_replicas=replicas,
        target_num_replicas=replicas,
        running_replicas=[],
        total_num_requests=requests,
        total_queued_requests=queued,
        aggregated_metrics={name: dict(enumerate(values)) for name, values in reported.items()},
        raw_metrics={},
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=9,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0,
        config=told,
    )
    return policy(context)[0]


def test_queue() -> None:
    by = {"kind": "queue", "target": 2}
    assert decide(by, 1, requests=20, queued=6, waiting=[2]) == 4
    assert decide(by, 4, requests=20, queued=1, waiting=[0, 0, 1, 0]) == 4  # some wait, but not too many
    assert decide(by, 4, requests=12, waiting=[0, 0, 0, 0]) == 2  # twelve fit into two
    assert decide(by, 2, requests=30, waiting=[0, 0]) == 2
    assert decide(by, 2) == 0


def test_tokens_in_flight() -> None:
    by = {"kind": "tokens_in_flight", "target": 1000}
    assert decide(by, 2, requests=10, tokens=[1500, 1500]) == 3
    assert decide(by, 1, requests=20, queued=10, tokens=[1000]) == 2  # as many again wait
    assert decide(by, 1, requests=1, tokens=[0]) == 1  # one that has not begun yet
    assert decide(by, 2, tokens=[0, 0]) == 0


def test_time_to_first_token() -> None:
    by = {"kind": "ttft", "target_s": 1}
    assert decide(by, 2, requests=10, ttft_s=[1.5, 0.2]) == 3
    assert decide(by, 2, requests=10, ttft_s=[60]) == 4
    assert decide(by, 3, requests=10, ttft_s=[0.8]) == 3
    assert decide(by, 3, requests=10, ttft_s=[0.1]) == 2
    assert decide(by, 1, requests=10, ttft_s=[0.1]) == 1
    assert decide(by, 1, ttft_s=[]) == 0


def test_ongoing_requests_are_serves_own() -> None:
    told = AutoscalingConfig(**config(Autoscaling(max_replicas=3, look_back_s=20), ROOM))
    assert told.policy.is_default_policy_function() and told.target_ongoing_requests == 8
    assert (told.max_replicas, told.upscale_delay_s, told.downscale_delay_s, told.look_back_period_s) == (3, 10, 300, 20)


def test_mistakes_are_told() -> None:
    with pytest.raises(SpecError, match="target"):
        Autoscaling.parse({"by": {"kind": "ttft", "target": 1}})
    with pytest.raises(SpecError, match="more than max_replicas"):
        Autoscaling.parse({"min_replicas": 2})
    for kind in ("ttft", "tokens_in_flight"):
        with pytest.raises(SpecError, match="does not see"):
            ServedModel.parse({"name": "m", "ref": "file:/x", "engine": {"kind": "onnx"}, "autoscaling": {"by": {"kind": kind}}})


def test_serve_keeps_a_policy_on_its_way_to_the_controller() -> None:
    models = [{"name": "chat", "ref": "file:/none", "autoscaling": {"min_replicas": 0, "max_replicas": 2, "by": {"kind": "queue"}}}]
    app = application(ServeSpec.parse({"models": models}), {"chat": EchoEngine})
    chat = next(one for one in build_app(app, name="raybm", default_runtime_env={}).deployments if one.name == "chat")
    there = DeploymentConfig.from_proto_bytes(chat._deployment_config.to_proto_bytes()).autoscaling_config
    assert there is not None and (there.min_replicas, there.max_replicas) == (0, 2)
    assert there.policy.get_policy().__name__ == "QueuePolicy" and there.policy.policy_kwargs == {"target": 2, "room": 32}


def test_replicas_on_cpus_keep_their_memory() -> None:
    models = [{"name": "cpu", "ref": "file:/none"}, {"name": "gpu", "ref": "file:/none", "gpus": 1}]
    app = application(ServeSpec.parse({"models": models}), {"cpu": EchoEngine, "gpu": EchoEngine})
    asked = {one.name: one.ray_actor_options for one in build_app(app, name="raybm", default_runtime_env={}).deployments}
    assert ops.KEEPS_MEMORY.items() <= asked["cpu"]["runtime_env"]["env_vars"].items()
    assert not (asked["gpu"].get("runtime_env") or {}).get("env_vars")

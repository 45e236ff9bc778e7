"""A server of ray.serve.llm in this process, which reads prompts, answers, or does both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from raybm.core.ports import free_ports
from raybm.engines.ray_llm.spec import RayLlm

NAME = ":model"  # what ray.serve.llm calls it, and no adapter can be called; clients never see it


async def started(spec: RayLlm, folder: Path, *, reads_for_others: bool = False, prefill_handle: Any = None) -> Any:
    """A server of ray.serve.llm. `prefill_handle`: Serve's, of the replicas that read prompts for it."""
    _prepare(spec)
    from ray.serve.llm import LLMConfig
    from ray.serve.llm.deployment import LLMServer, PDDecodeServer, PDPrefillServer

    gpu = _on_gpu()
    given = spec.arguments(gpu)
    if spec.prefill:
        given["kv_transfer_config"] = {
            "kv_connector": spec.prefill.connector,
            "kv_role": "kv_producer" if reads_for_others else "kv_consumer",
            "kv_load_failure_policy": "recompute",
            **spec.prefill.connector_args,
        }
    config = LLMConfig(
        model_loading_config={"model_id": NAME, "model_source": str(folder)},
        accelerator_config={"kind": "gpu" if gpu else "cpu"},
        engine_kwargs=given,
        experimental_configs={"stream_batching_interval_ms": 0},
        log_engine_metrics=False,
    )
    kind: Any = PDPrefillServer if reads_for_others else LLMServer if prefill_handle is None else PDDecodeServer
    server = kind.__new__(kind)
    await server.__init__(config, **({} if prefill_handle is None else {"prefill_server": prefill_handle}))  # as Serve does
    return server


def _on_gpu() -> bool:
    """Whether this replica has GPUs in its placement group."""
    import ray
    import torch

    group = ray.util.get_current_placement_group()
    return torch.cuda.is_available() if group is None else any(bundle.get("GPU") for bundle in group.bundle_specs)


def _prepare(spec: RayLlm) -> None:
    """This process's environment, before its engine starts."""
    import ray

    # vLLM would bind its threads to all cores, whatever Ray gave this replica (OMP_NUM_THREADS).
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if spec.prefill:
        host = ray.util.get_node_ip_address()
        os.environ.setdefault("VLLM_NIXL_SIDE_CHANNEL_HOST", host)
        os.environ.setdefault("VLLM_NIXL_SIDE_CHANNEL_PORT", str(free_ports(1, host)[0]))
        if host == "127.0.0.1":
            os.environ.setdefault("UCX_NET_DEVICES", "lo")


def engine_of(server: Any) -> Any:
    """Its vLLM engine, whose context, end of text and health no method tells."""
    return server.engine._engine_client

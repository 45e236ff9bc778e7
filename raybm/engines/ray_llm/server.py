"""A server of ray.serve.llm in this process, which reads prompts, answers, or does both."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path
from typing import Any

from raybm.core.errors import RaybmError
from raybm.engines.ray_llm.spec import RayLlm

NAME = "model"  # what ray.serve.llm calls it; clients never see it
PORTS = range(20000, 32000)  # below those that Linux gives out by itself


async def started(spec: RayLlm, folder: Path, beside: Any = None, reads: bool = False) -> Any:
    """A server of ray.serve.llm. `reads`: it reads prompts for others; `beside`: Serve's handle of those that read them for it."""
    _prepare(spec)
    from ray.serve.llm import LLMConfig
    from ray.serve.llm.deployment import LLMServer, PDDecodeServer, PDPrefillServer

    gpu = _on_gpu()
    given = spec.arguments(gpu)
    if spec.prefill:
        transfer: dict[str, Any] = {"kv_connector": spec.prefill.connector, "kv_role": "kv_producer" if reads else "kv_consumer"}
        transfer |= {"kv_load_failure_policy": "recompute"} | ({} if gpu else {"kv_buffer_device": "cpu"})
        given["kv_transfer_config"] = transfer | spec.prefill.connector_args
    config = LLMConfig(
        model_loading_config={"model_id": NAME, "model_source": str(folder)},
        accelerator_config={"kind": "gpu" if gpu else "cpu"},
        engine_kwargs=given,
        experimental_configs={"stream_batching_interval_ms": 0},
        log_engine_metrics=False,
    )
    kind: Any = PDPrefillServer if reads else PDDecodeServer if beside is not None else LLMServer
    server = kind.__new__(kind)
    await server.__init__(config, **({"prefill_server": beside} if beside is not None else {}))  # as Serve does
    return server


def _on_gpu() -> bool:
    """Whether this replica has GPUs in its placement group."""
    import ray
    import torch

    group = ray.util.get_current_placement_group()
    return torch.cuda.is_available() if group is None else any(bundle.get("GPU") for bundle in group.bundle_specs)


def _prepare(spec: RayLlm) -> None:
    """This process's environment, before vLLM is loaded."""
    import ray

    # vLLM would bind its threads to all cores, whatever Ray gave this replica (OMP_NUM_THREADS).
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if spec.prefill:
        host = ray.util.get_node_ip_address()
        os.environ.setdefault("VLLM_NIXL_SIDE_CHANNEL_HOST", host)
        os.environ.setdefault("VLLM_NIXL_SIDE_CHANNEL_PORT", str(_free(host, spec.workers())))
        if host == "127.0.0.1":
            os.environ.setdefault("UCX_NET_DEVICES", "lo")


def _free(host: str, count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for first in random.sample(PORTS, 100):
        probes = [socket.socket() for _ in range(count)]
        try:
            for port, probe in enumerate(probes, first):
                probe.bind((host, port))
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
        return first
    raise RaybmError(f"no {count} ports in a row are free between {PORTS.start} and {PORTS.stop}.", remedy="Free some.")

"""The replicas that read prompts, as ray.serve.llm's own do, for the replicas that answer."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

from ray import serve

from raybm.core.storage import open_storage
from raybm.engines.base import Place, prefill_name
from raybm.engines.loopback import stay_on_loopback
from raybm.engines.ray_llm.server import engine_of, started
from raybm.engines.ray_llm.spec import RayLlm
from raybm.models.references import resolve

logger = logging.getLogger(__name__)


class PrefillReplica:
    """One of them. Both sides are servers of ray.serve.llm, which have agreed on what goes to and fro."""

    async def __init__(self, spec: RayLlm, ref: str, storage: str) -> None:  # type: ignore[misc]  # Serve awaits it
        from raybm.engines.vllm_answers import language_model, not_started  # loads transformers, which whoever deploys need not

        stay_on_loopback()
        folder = await asyncio.to_thread(resolve, ref, open_storage(storage))
        language_model(folder, spec.kind)
        try:
            self._server = await started(spec, folder, reads_for_others=True)
        except Exception as error:
            raise not_started(error, folder) from error

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        await self._server.check_health()

    async def completions(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        try:
            async for part in await self._server.completions(request, raw_request_info):
                yield part
        except Exception:  # an edge: whatever it is, it is raised again, or this process ends
            if engine_of(self._server).errored:  # it would refuse everything at once, and so be asked more than the others
                logger.critical("vLLM's engine died. This process ends.")
                logging.shutdown()
                os._exit(1)
            raise


def application(spec: RayLlm, place: Place, ref: str, storage: str) -> Any:
    """Its Serve application, whose handle the replicas that answer are given."""
    assert spec.prefill is not None
    deployment = serve.deployment(PrefillReplica).options(
        name=prefill_name(place.name),
        num_replicas=spec.prefill.replicas,
        ray_actor_options={"num_cpus": place.cpus, "num_gpus": 0, "runtime_env": place.runtime_env},
        placement_group_bundles=place.bundles,
        placement_group_strategy="PACK",
        max_ongoing_requests=spec.max_batch,
        graceful_shutdown_timeout_s=place.shutdown_s,
        logging_config={"enable_access_log": False},
    )
    return deployment.bind(spec, ref, storage)

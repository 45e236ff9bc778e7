"""Settings of the ray_llm engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, PositiveInt

from raybm.core.spec import Check, Spec
from raybm.engines.base import Place, model_folder
from raybm.engines.vllm_settings import VllmSettings

if TYPE_CHECKING:
    from raybm.core.storage import Storage
    from raybm.engines.protocol import Engine


class Prefill(Spec):
    """Replicas of their own that read the prompts. What they computed goes over to the replicas that answer, which are so not held up."""

    replicas: PositiveInt = 1
    """As many, each on as many GPUs as a replica that answers."""
    connector: Annotated[str, Field(min_length=1)] = "NixlConnector"
    """vLLM's way from one to the other. NIXL (package nixl) goes from memory to memory, of GPUs by RDMA where there is such a network."""
    connector_args: dict[str, JsonValue] = {}
    """What that one wants to know, as vLLM's KVTransferConfig names it, such as {kv_connector_extra_config: {...}}."""


class RayLlm(VllmSettings):
    """vLLM by ray.serve.llm in the replica's process; prompts can be read by replicas of their own. For language models."""

    PLACEMENT_GROUP = True

    kind: Literal["ray_llm"] = "ray_llm"
    prefill: Prefill | None = None
    """Default: each replica reads its prompts itself."""

    CHECKS: ClassVar[tuple[Check, ...]] = (
        *VllmSettings.CHECKS,
        Check(
            ("engine_args", "prefill"),
            lambda args, prefill: (
                ("prefill decides about kv_transfer_config.", "Set its connector and connector_args.")
                if prefill and "kv_transfer_config" in args
                else None
            ),
        ),
        Check(
            ("adapters", "prefill"),
            lambda adapters, prefill: (
                ("replicas that read prompts do so without adapters.", "Drop one of the two.") if adapters and prefill else None
            ),
        ),
    )

    def keeps_prefixes(self) -> bool:
        return self.prefix_cache and self.prefill is None  # a prompt goes to whichever replica reads it

    def prefill_replicas(self) -> int:
        return self.prefill.replicas if self.prefill else 0

    def prefill_application(self, place: Place, ref: str, storage: str) -> Any:
        if self.prefill is None:
            return None
        from raybm.engines.ray_llm.prefill import application

        return application(self, place, ref, storage)

    def load(self, ref: str | None, storage: Storage, prefill_handle: Any = None) -> Engine:
        return self.build(model_folder(ref, storage), prefill_handle)

    def build(self, model_dir: Path, prefill_handle: Any = None) -> Engine:
        from raybm.engines.ray_llm.engine import build

        return build(self, model_dir, prefill_handle)

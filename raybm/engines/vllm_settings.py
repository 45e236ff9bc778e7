"""What the engines that run vLLM are told: its arguments, under raybm's names."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, PositiveInt

from raybm.core.spec import Check
from raybm.engines.base import AdaptedEngine

OWN = {  # vLLM's names of what has a key here, or is decided here
    "model": "ref",
    "dtype": "precision",
    "max_num_seqs": "max_batch",
    "tensor_parallel_size": "tensor_parallel",
    "pipeline_parallel_size": "pipeline_parallel",
    "max_model_len": "max_length",
    "gpu_memory_utilization": "gpu_memory",
    "kv_cache_memory_bytes": "cache_bytes",
    "enable_prefix_caching": "prefix_cache",
    "quantization": "quantization",
    "enforce_eager": "compile",
    "enable_lora": "adapters",
    "max_loras": "adapters_at_once",
    "max_lora_rank": "adapter_rank",
}
TYPES = {"auto": "auto", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class VllmSettings(AdaptedEngine):
    """For language models."""

    TOKENS = True

    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """auto: the type the weights are stored in; fp32 weights are computed in a half precision on GPUs."""
    quantization: Literal["fp8", "bitsandbytes", "awq", "gptq", "compressed-tensors"] | None = None
    """How weights are quantised. Default: as the model's config.json says, so this is for quantising plain weights as they are loaded."""
    tensor_parallel: PositiveInt = 1
    """GPUs that hold a part of each layer; they should be of one node."""
    pipeline_parallel: PositiveInt = 1
    """Groups of such GPUs that hold some of the layers each."""
    max_batch: PositiveInt = 256
    """Requests computed together."""
    max_length: PositiveInt | None = None
    """Longest prompt and answer together, in tokens. Default: what the model was made for."""
    gpu_memory: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of each GPU's memory for weights and key/value cache."""
    cache_bytes: PositiveInt | None = None
    """Memory of the key/value cache in each worker. Default: what `gpu_memory` leaves; on CPUs 4 GiB."""
    prefix_cache: bool = True
    """Keep what was computed for beginnings of prompts, for the next ones that begin alike."""
    compile: bool | None = None
    """Compile the model at the start, which takes minutes. Default: on GPUs."""
    adapters_at_once: PositiveInt = 4
    """Different adapters computed together; requests for others wait. Each is fetched when it is first asked for."""
    adapter_rank: Literal[8, 16, 32, 64, 128, 256] = 16
    """The highest rank among the adapters."""
    engine_args: dict[str, JsonValue] = {}
    """Anything else, as vLLM's AsyncEngineArgs name it, such as {speculative_config: {...}}: passed through unseen."""

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(
            ("engine_args",),
            lambda args: next(
                ((f"{key} has a key of its own here.", f"Set {OWN[key]} instead.") for key in args if key in OWN),
                None,
            ),
        ),
    )

    def workers(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel

    def keeps_prefixes(self) -> bool:
        return self.prefix_cache

    def arguments(self, on_gpu: bool) -> dict[str, Any]:
        """Of vLLM's AsyncEngineArgs, all but the model and where its workers are."""
        given: dict[str, Any] = {
            "dtype": TYPES[self.precision],
            "quantization": self.quantization,
            "max_num_seqs": self.max_batch,
            "tensor_parallel_size": self.tensor_parallel,
            "pipeline_parallel_size": self.pipeline_parallel,
            "max_model_len": self.max_length,
            "gpu_memory_utilization": self.gpu_memory,
            "kv_cache_memory_bytes": self.cache_bytes,
            "enable_prefix_caching": self.prefix_cache,
            "enforce_eager": not (on_gpu if self.compile is None else self.compile),
            # llguidance, as the transformers engine has it; with free white space a small model may write nothing else
            "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
            "disable_log_stats": True,
        }
        if self.adapters:
            given |= {"enable_lora": True, "max_loras": self.adapters_at_once, "max_lora_rank": self.adapter_rank}
        return given | self.engine_args

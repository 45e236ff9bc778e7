"""The vllm engine: vLLM's asynchronous engine in this process."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from raybm.core.signature import Signature
from raybm.engines.protocol import Engine
from raybm.engines.vllm.spec import Vllm
from raybm.engines.vllm_answers import Adapter, Json, Piece, VllmAnswers, language_model


def build(spec: Vllm, folder: Path) -> Engine:
    """The engine for a folder of safetensors, config and tokenizer. Raises Unsupported, NotFound, RaybmError (vLLM does not start)."""
    return VllmEngine(spec, folder, language_model(folder, spec.kind))


class VllmEngine(VllmAnswers):
    def __init__(self, spec: Vllm, folder: Path, signature: Signature) -> None:
        super().__init__(spec, folder, signature, _start(spec, folder))

    async def pieces(self, ids: list[int], sampling: Json, adapter: Adapter | None) -> AsyncGenerator[Piece, None]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        schema = sampling["structured_outputs"]
        given = sampling | {"structured_outputs": None if schema is None else StructuredOutputsParams(**schema)}
        params = SamplingParams(**given, output_kind=RequestOutputKind.DELTA)
        lora = None if adapter is None else LoRARequest(adapter.name, adapter.number, str(adapter.folder))
        outputs = self._llm.generate({"prompt_token_ids": ids}, params, uuid.uuid4().hex, lora_request=lora)
        try:
            async for output in outputs:
                made = output.outputs[0]
                yield Piece(made.text, made.token_ids, made.finish_reason, _likely(made))
        finally:
            await outputs.aclose()


async def _start(spec: Vllm, folder: Path) -> Any:
    import torch
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        # vLLM would bind its threads to all cores, whatever Ray gave this replica (OMP_NUM_THREADS).
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    given: dict[str, Any] = {"model": str(folder)}
    if spec.workers() > 1:
        given["distributed_executor_backend"] = "ray"  # in the placement group of this replica
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**given | spec.arguments(on_gpu)))


def _likely(made: Any) -> list[list[tuple[int, float]]]:
    found = []
    for token, likely in zip(made.token_ids, made.logprobs or (), strict=False):  # none where they were not asked for
        ranked = sorted(likely.items(), key=lambda entry: entry[1].rank)
        found.append([(token, likely[token].logprob), *((other, one.logprob) for other, one in ranked)])
    return found

"""The ray_llm engine: a server of ray.serve.llm in this process, asked for what follows after tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

from grpc import RpcError
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from raybm.core.signature import Signature
from raybm.engines.protocol import Engine
from raybm.engines.ray_llm.server import NAME, started
from raybm.engines.ray_llm.spec import RayLlm
from raybm.engines.vllm_answers import Adapter, Json, Piece, VllmAnswers, language_model

PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Before a prompt is given to the replicas that read them once more, when one went away with it."""
LOST = (RayError, RayServeException, RpcError)


def build(spec: RayLlm, folder: Path, beside: Any) -> Engine:
    """`beside`: Serve's handle of the replicas that read prompts, where there are such. Raises Unsupported, NotFound, RaybmError (it does
    not start)."""
    return RayLlmEngine(spec, folder, language_model(folder, spec.kind), beside)


class RayLlmEngine(VllmAnswers):
    def __init__(self, spec: RayLlm, folder: Path, signature: Signature, beside: Any) -> None:
        super().__init__(spec, folder, signature, self._start(spec, folder, beside))

    async def pieces(self, ids: list[int], sampling: Json, adapter: Adapter | None) -> AsyncGenerator[Piece, None]:
        for pause_s in (*PAUSES_S, None):
            began = False
            source = self._pieces(ids, sampling, adapter)
            try:
                async for piece in source:
                    began = True
                    yield piece
                return
            except LOST:
                if began or pause_s is None:
                    raise
                await asyncio.sleep(pause_s)
            finally:
                await source.aclose()

    async def _pieces(self, ids: list[int], sampling: Json, adapter: Adapter | None) -> AsyncGenerator[Piece, None]:
        from ray.serve.llm.openai_api_models import CompletionRequest

        if adapter is not None:
            await self._read(adapter)
        told = {"stream": True, "return_token_ids": True, "return_tokens_as_token_ids": True}
        request = CompletionRequest(model=adapter.name if adapter else NAME, prompt=ids, **told, **sampling)
        answers = await self._server.completions(request)
        try:
            async for part in answers:
                for line in part if isinstance(part, list) else [part]:
                    for choice in _choices(line):
                        yield Piece(choice["text"], choice["token_ids"] or (), choice["finish_reason"], _likely(choice["logprobs"]))
        finally:
            await answers.aclose()

    async def _read(self, adapter: Adapter) -> None:
        from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig

        number, folder = adapter.number, str(adapter.folder)
        known = DiskMultiplexConfig(model_id=adapter.name, max_total_tokens=None, local_path=folder, lora_assigned_int_id=number)
        await self._server.engine.resolve_lora(known)

    async def _start(self, spec: RayLlm, folder: Path, beside: Any) -> Any:
        self._server = await started(spec, folder, beside)
        return self._server.engine._engine_client  # whose context, end of text and health no method tells


def _choices(line: Any) -> Iterator[Json]:
    """Of a line of a stream. Raises ValueError: a mistake of the request; RuntimeError: one of the server."""
    event = json.loads(line.removeprefix("data: ")) if isinstance(line, str) and not line.startswith("data: [DONE]") else {}
    error = event.get("error") if isinstance(line, str) else line.error.model_dump()
    if error:
        kind = ValueError if 400 <= int(error.get("code") or 500) < 500 else RuntimeError
        raise kind(error["message"])
    yield from event.get("choices", ())


def _likely(found: Json | None) -> list[list[tuple[int, float]]]:
    if found is None:
        return []
    tops = found["top_logprobs"] or [{}] * len(found["tokens"])
    return [
        [(_id(token), logprob), *sorted(((_id(other), one) for other, one in top.items()), key=lambda entry: -entry[1])]
        for token, logprob, top in zip(found["tokens"], found["token_logprobs"], tops, strict=True)
    ]


def _id(token: str) -> int:
    return int(token.removeprefix("token_id:"))

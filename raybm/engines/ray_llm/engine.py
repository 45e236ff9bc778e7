"""The ray_llm engine: a server of ray.serve.llm in this process, asked for what follows after tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

from grpc.aio import AioRpcError
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import RayServeException

from raybm.core.errors import Overloaded
from raybm.core.signature import Signature
from raybm.engines.protocol import Engine
from raybm.engines.ray_llm.server import NAME, engine_of, started
from raybm.engines.ray_llm.spec import RayLlm
from raybm.engines.vllm_answers import Adapter, Json, Piece, VllmAnswers, language_model

PLAIN = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Not as the model's generation_config.json says, which the other engines do not heed either."""
PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Before a prompt is given to the replicas that read them once more, when one went away with it."""
LOST = (RayActorError, NodeDiedError, WorkerCrashedError, ObjectLostError, RayServeException, AioRpcError)


def build(spec: RayLlm, folder: Path, prefill_handle: Any) -> Engine:
    """`prefill_handle`: Serve's, of the replicas that read prompts, where there are such. Raises Unsupported, NotFound, RaybmError (it does
    not start)."""
    return RayLlmEngine(spec, folder, language_model(folder, spec.kind), prefill_handle)


class RayLlmEngine(VllmAnswers):
    def __init__(self, spec: RayLlm, folder: Path, signature: Signature, prefill_handle: Any) -> None:
        self._reading = asyncio.Lock()
        super().__init__(spec, folder, signature, self._start(spec, folder, prefill_handle))

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
                if began:
                    raise
                if pause_s is None:
                    raise Overloaded("no replica reads prompts now.", remedy="Try again later.") from None
                await asyncio.sleep(pause_s)
            finally:
                await source.aclose()

    async def _pieces(self, ids: list[int], sampling: Json, adapter: Adapter | None) -> AsyncGenerator[Piece, None]:
        from ray.serve.llm.openai_api_models import CompletionRequest

        if adapter is not None:
            await self._read(adapter)
        told = {"stream": True, "return_token_ids": True, "return_tokens_as_token_ids": True} | PLAIN
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
        async with self._reading:  # which it looks at before it waits
            await self._server.engine.resolve_lora(known)

    async def _start(self, spec: RayLlm, folder: Path, prefill_handle: Any) -> Any:
        self._server = await started(spec, folder, prefill_handle=prefill_handle)
        return engine_of(self._server)


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

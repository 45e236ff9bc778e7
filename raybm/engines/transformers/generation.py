"""Generation with continuous batching: requests from asyncio, one thread that steps the batch, answers back to asyncio."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybm.core.errors import EngineDied, Overloaded, RaybmError, UserError
from raybm.core.signature import Signature
from raybm.engines import toolcalls
from raybm.engines.prompts import answer_limit, prompt_ids, style
from raybm.engines.protocol import Chosen, Delta, FinishReason, GenerateRequest, Likely, Tokens, ToolCall
from raybm.engines.tokens import as_text, as_tokens
from raybm.engines.transformers.adapters import Adapters
from raybm.engines.transformers.batch import Batch, NoMemory, Row
from raybm.engines.transformers.spec import Transformers
from raybm.engines.transformers.textstream import TextStream
from raybm.engines.vocabulary import Constraint, Vocabulary

logger = logging.getLogger(__name__)

PREFILL_TOKENS = 2048  # padded prompt tokens computed between two steps: the running answers wait for them
HEADROOM = 32  # columns that must be free for a row to join, lest it be sent back at once
CLOSE_TIMEOUT_S = 30.0


@dataclass(eq=False)
class Answer(Row):
    """A row of the batch, and the client that waits for its text."""

    limit: int = 0  # tokens to generate
    text: TextStream = field(kw_only=True)
    vocabulary: Vocabulary = field(kw_only=True)
    calls: toolcalls.CallStream | None = None  # where the model may call tools
    said: list[Chosen] = field(default_factory=list)  # tokens with their log-probabilities that were not given out
    offset: int = 0  # characters of the tokens before the next
    loop: asyncio.AbstractEventLoop = field(kw_only=True)
    items: asyncio.Queue[Delta | RaybmError] = field(default_factory=asyncio.Queue)
    produced: int = 0
    reported: int = 0
    over: bool = False  # finished, failed, or nobody listens any more

    def take(self, token: int, ends: frozenset[int]) -> None:
        """A token was chosen: give out its text."""
        if self.constraint and (error := self.constraint.error()):
            self.over = True
            self.send(error)
            return
        piece, calls, finish = self._grow(token, ends)
        if piece or calls or finish:
            new = self.produced - self.reported
            self.send(Delta(piece, new, self.prompt_tokens, finish, tuple(self.ids[-new:]), tuple(self.said), calls))
            self.reported, self.said = self.produced, []

    def go_on(self, written: Sequence[int], ends: frozenset[int]) -> None:
        """Stands as if it had taken these tokens, whose text was given out elsewhere."""
        torch.rand(len(written), generator=self.random)  # as many numbers as were drawn for them
        for token in written:
            if self.constraint:
                self.constraint.took(token)
            *_, finish = self._grow(token, ends)
            if finish:  # the answer was over, and only the word of it was lost
                self.send(Delta("", 0, self.prompt_tokens, finish))
                break
        self.reported = self.produced

    def _grow(self, token: int, ends: frozenset[int]) -> tuple[str, tuple[ToolCall, ...], FinishReason | None]:
        self.produced += 1
        self.ids.append(token)
        if token not in ends and self.logprobs is not None:
            self._note(token)
        piece = "" if token in ends else self.text.push(token)
        finish: FinishReason | None = None
        if token in ends or self.text.stopped:
            finish = "stop"
        elif self.produced == self.limit:
            finish = "length"
        if finish:
            self.over = True
            piece += self.text.flush()
        piece, calls = self._parted(piece)
        if finish == "stop" and self.calls and self.calls.found:
            finish = "tool_calls"
        return piece, calls, finish

    def _parted(self, piece: str) -> tuple[str, tuple[ToolCall, ...]]:
        """New text, and the calls that were in it."""
        if self.calls is None:
            return piece, ()
        text, calls = self.calls.push(piece)
        if not self.over:
            return text, calls
        rest, last = self.calls.flush()
        return text + rest, calls + last

    def _note(self, token: int) -> None:
        text = self.vocabulary.bytes_of(token).decode("utf-8", "replace")
        if self.likely:  # not of a token that another replica chose
            top = tuple(_likely(self.vocabulary, *other) for other in self.likely.top)
            self.said.append(Chosen(text, self.vocabulary.bytes_of(token), self.likely.chosen, self.offset, top))
        self.offset += len(text)

    def send(self, item: Delta | RaybmError) -> None:
        try:
            self.loop.call_soon_threadsafe(self.items.put_nowait, item)
        except RuntimeError:  # the client's event loop is closed
            self.over = True


class Generator:
    """A causal language model that answers many requests at once (Generates)."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, signature: Signature, spec: Transformers) -> None:
        self.signature, self.tokenizer = signature, tokenizer
        self.max_batch, self.max_waiting, self.cache_tokens = spec.max_batch, spec.max_waiting, spec.cache_tokens
        self.ends = _ends(model, tokenizer)
        tokenizer("")  # sets truncation off once: the Rust tokenizer must not be changed while the thread decodes
        self.tokenizing = threading.Lock()
        self.vocabulary = Vocabulary(tokenizer, self.ends)
        self.words = int(model.config.get_text_config(decoder=True).vocab_size)
        self.adapters = Adapters(model, spec.adapters)
        self.batch = self._batch(model)
        self.answers: list[Answer] = []  # the batch's rows
        self.waiting: deque[Answer] = deque()
        self.changed = threading.Condition()  # guards `waiting` and `ended`
        self.ended: EngineDied | None = None
        self.thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self.thread.start()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        answer = await asyncio.to_thread(self._answer, request, asyncio.get_running_loop())
        with self.changed:
            if self.ended:
                raise _copy(self.ended)
            if len(self.waiting) >= self.max_waiting:
                raise Overloaded(f"{self.max_waiting} requests are waiting already.", remedy="Try again later, or add replicas.")
            if not answer.over:
                self.waiting.append(answer)
                self.changed.notify()
        try:
            while not isinstance(item := await answer.items.get(), RaybmError):
                yield item
                if item.finish_reason:
                    return
            raise item
        finally:
            answer.over = True
            with self.changed:
                if answer in self.waiting:
                    self.waiting.remove(answer)

    def tokenize(self, request: GenerateRequest, special: bool = True) -> Tokens:
        with self.tokenizing:
            plain = request.prompt is not None
            ids = self.tokenizer(request.prompt, add_special_tokens=special).input_ids if plain else self._prompt(request)
            return as_tokens(self.tokenizer, ids, self.signature.max_length)

    def detokenize(self, ids: Sequence[int]) -> str:
        with self.tokenizing:
            return as_text(self.tokenizer, ids)

    def check(self) -> None:
        if self.ended:
            raise _copy(self.ended)

    def close(self) -> None:
        with self.changed:
            self.ended = self.ended or EngineDied("the engine was closed.", remedy="Send the request again.")
            self.changed.notify()
        self.thread.join(CLOSE_TIMEOUT_S)

    def _batch(self, model: PreTrainedModel) -> Any:
        return Batch(model, self.adapters)

    # ---- beside the event loop, which a long prompt would hold up: from a request to a row

    def _answer(self, request: GenerateRequest, loop: asyncio.AbstractEventLoop) -> Answer:
        if request.max_tokens is not None and request.max_tokens < 1:
            raise UserError(f"{request.max_tokens} is no number of tokens.", where="max_tokens", remedy="Ask for 1 or more.")
        self._check(request)
        self.adapters.check(request.adapter)
        with self.tokenizing:
            prompt = self._prompt(request)
            calls = style(self.tokenizer, request)
        limit = self._limit(len(prompt), request)
        random = torch.Generator()
        if request.seed is None:
            random.seed()
        else:
            random.manual_seed(request.seed % 2**63)
        answer = Answer(
            prompt,
            request.temperature,
            request.top_p,
            random,
            prompt_tokens=len(prompt),
            frequency_penalty=request.frequency_penalty,
            presence_penalty=request.presence_penalty,
            constraint=self._constraint(request),
            logprobs=request.logprobs,
            adapter=request.adapter,
            limit=limit,
            text=TextStream(self.tokenizer, self._before(prompt), request.stop),
            vocabulary=self.vocabulary,
            calls=toolcalls.CallStream(calls, [tool["function"]["name"] for tool in request.tools]) if calls else None,
            loop=loop,
        )
        if request.written and max(request.written) >= self.words:
            raise UserError("an answer is to be gone on with that another model began.", remedy="Send the request again.")
        answer.go_on(request.written, self.ends)
        return answer

    def _check(self, request: GenerateRequest) -> None:
        """Raises Unsupported for what the model cannot do."""

    def _constraint(self, request: GenerateRequest) -> Constraint | None:
        if request.logprobs is not None:
            self.vocabulary.bytes_of(0)  # read here, where it holds up nobody, and raises what it must
        if request.must_call:
            return self.vocabulary.constraint(toolcalls.schema(request.tools), "tools")
        return None if request.schema is None else self.vocabulary.constraint(request.schema, "response_format")

    def _before(self, prompt: list[int]) -> list[int]:
        """What the answer goes on from."""
        return prompt

    def _limit(self, prompt: int, request: GenerateRequest) -> int:
        """Tokens that an answer may have, after a prompt of so many. Raises UserError."""
        return answer_limit(prompt, request, self.signature.max_length)

    def _prompt(self, request: GenerateRequest) -> list[int]:
        return prompt_ids(self.tokenizer, request, self.signature.max_length)

    # ---- on the thread: the batch

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                while not self._wait():
                    try:
                        self._turn()
                    except NoMemory:
                        self._make_room()
        except Exception as error:  # the thread's edge: whoever waits must hear of it
            logger.exception("generation broke down")
            self.ended = EngineDied(
                f"generation broke down: {type(error).__name__}: {error}", remedy="See the replica's log; it is started again."
            )
        finally:
            with self.changed:
                left = [*self.answers, *self.waiting]
                self.waiting.clear()
            self.answers = []
            del self.batch  # and with it the model
            for answer in left:
                if not answer.over:
                    answer.send(_copy(self.ended or EngineDied("generation ended.")))

    def _wait(self) -> bool:
        """Sleeps until there is something to do. True: the engine was closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.ended or self.waiting or self.answers)
            return self.ended is not None

    def _turn(self) -> None:
        """The finished leave, the waiting join, everybody gets a token. Where the cache is full, those that came last go back
        to the front of the queue and are computed again later."""
        keep = [i for i, answer in enumerate(self.answers) if not answer.over]
        while len(keep) > 1 and len(keep) * (max(self.answers[i].cached for i in keep) + 1) > self.cache_tokens:
            with self.changed:
                self.waiting.appendleft(self.answers[keep.pop()])
        newcomers = self._newcomers([self.answers[i] for i in keep])
        self.answers = [self.answers[i] for i in keep] + newcomers
        for answer, token in zip(newcomers, self.batch.regroup(keep, newcomers), strict=True):
            answer.take(token, self.ends)
        if all(answer.over for answer in self.answers):
            return
        for answer, token in zip(self.answers, self.batch.step(), strict=True):
            if not answer.over:
                answer.take(token, self.ends)

    def _make_room(self) -> None:
        """Memory did not suffice: fewer tokens are held from now on, and the rows are computed again; one that is alone cannot be."""
        rows, self.answers, self.batch = self.answers, [], self._batch(self.batch.model)
        torch.cuda.empty_cache()
        if len(rows) == 1:
            what = f"a prompt and an answer of {len(rows[0].ids)} tokens need more memory than this replica has."
            rows[0].over = True
            rows[0].send(UserError(what, where="prompt", remedy="Shorten the prompt, or give the model more memory."))
            return
        held = self._held(rows)
        self.cache_tokens = max(1, min(self.cache_tokens, held) * 3 // 4)
        logger.warning("memory does not suffice for %d tokens; %d are held from now on", held, self.cache_tokens)
        with self.changed:
            self.waiting.extendleft(row for row in reversed(rows) if not row.over)

    def _held(self, rows: list[Answer]) -> int:
        """Tokens, padding included, as `cache_tokens` counts them."""
        return len(rows) * max(len(row.ids) for row in rows)

    def _newcomers(self, staying: list[Answer]) -> list[Answer]:
        chosen: list[Answer] = []
        longest, columns = 0, max((answer.cached for answer in staying), default=0)
        with self.changed:
            while self.waiting and (rows := len(staying) + len(chosen) + 1) <= self.max_batch:
                longest = max(longest, len(self.waiting[0].ids))
                if chosen and longest * (len(chosen) + 1) > PREFILL_TOKENS:
                    break
                if rows > 1 and rows * (max(columns, longest) + HEADROOM) > self.cache_tokens:
                    break
                chosen.append(self.waiting.popleft())
        return chosen


def _likely(vocabulary: Vocabulary, token: int, logprob: float) -> Likely:
    raw = vocabulary.bytes_of(token)
    return Likely(raw.decode("utf-8", "replace"), raw, logprob)


def _copy(error: EngineDied) -> EngineDied:
    """An exception of its own for each waiter: tracebacks grow on what is raised."""
    return EngineDied(error.what, where=error.where, remedy=error.remedy)


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    ends = model.generation_config.eos_token_id if model.generation_config else None
    if ends is None:
        ends = tokenizer.eos_token_id
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])

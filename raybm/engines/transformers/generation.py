"""Generation with continuous batching: requests from asyncio, one thread that steps the batch, answers back to asyncio."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybm.core.errors import Overloaded, RaybmError, Unsupported, UserError
from raybm.core.signature import Signature
from raybm.engines.protocol import Delta, FinishReason, GenerateRequest
from raybm.engines.transformers.batch import Batch, Row
from raybm.engines.transformers.spec import Transformers
from raybm.engines.transformers.textstream import TextStream

logger = logging.getLogger(__name__)

PREFILL_TOKENS = 2048  # padded prompt tokens computed between two steps: the running answers wait for them
CHARACTERS_A_TOKEN = 32  # of a whole prompt, at the most: text has some 4, and a longer prompt is refused before it is tokenised
HEADROOM = 32  # columns that must be free for a row to join, lest it be sent back at once
CLOSE_TIMEOUT_S = 30.0


@dataclass(eq=False)
class Answer(Row):
    """A row of the batch, and the client that waits for its text."""

    limit: int = 0  # tokens to generate
    text: TextStream = field(kw_only=True)
    loop: asyncio.AbstractEventLoop = field(kw_only=True)
    items: asyncio.Queue[Delta | RaybmError] = field(default_factory=asyncio.Queue)
    produced: int = 0
    reported: int = 0
    over: bool = False  # finished, failed, or nobody listens any more

    def take(self, token: int, ends: frozenset[int]) -> None:
        """A token was chosen: give out its text."""
        piece, finish = self._grow(token, ends)
        if piece or finish:
            new = self.produced - self.reported
            self.send(Delta(piece, new, self.prompt_tokens, finish, tuple(self.ids[-new:])))
            self.reported = self.produced

    def go_on(self, written: Sequence[int], ends: frozenset[int]) -> None:
        """Stands as if it had taken these tokens, whose text was given out elsewhere."""
        torch.rand(len(written), generator=self.random)  # as many numbers as were drawn for them
        for token in written:
            _, finish = self._grow(token, ends)
            if finish:  # the answer was over, and only the word of it was lost
                self.send(Delta("", 0, self.prompt_tokens, finish))
                break
        self.reported = self.produced

    def _grow(self, token: int, ends: frozenset[int]) -> tuple[str, FinishReason | None]:
        self.produced += 1
        self.ids.append(token)
        piece = "" if token in ends else self.text.push(token)
        finish: FinishReason | None = None
        if token in ends or self.text.stopped:
            finish = "stop"
        elif self.produced == self.limit:
            finish = "length"
        if finish:
            self.over = True
            piece += self.text.flush()
        return piece, finish

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
        self.batch = self._batch(model)
        self.answers: list[Answer] = []  # the batch's rows
        self.waiting: deque[Answer] = deque()
        self.changed = threading.Condition()  # guards `waiting` and `ended`
        self.ended: RaybmError | None = None
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

    def check(self) -> None:
        if self.ended:
            raise _copy(self.ended)

    def close(self) -> None:
        with self.changed:
            self.ended = self.ended or RaybmError("the engine was closed.", remedy="Send the request again.")
            self.changed.notify()
        self.thread.join(CLOSE_TIMEOUT_S)

    def _batch(self, model: PreTrainedModel) -> Any:
        return Batch(model)

    # ---- beside the event loop, which a long prompt would hold up: from a request to a row

    def _answer(self, request: GenerateRequest, loop: asyncio.AbstractEventLoop) -> Answer:
        if request.max_tokens is not None and request.max_tokens < 1:
            raise UserError(f"{request.max_tokens} is no number of tokens.", where="max_tokens", remedy="Ask for 1 or more.")
        with self.tokenizing:
            prompt = self._prompt(request)
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
            limit=limit,
            text=TextStream(self.tokenizer, self._before(prompt), request.stop),
            loop=loop,
        )
        answer.go_on(request.written, self.ends)
        return answer

    def _before(self, prompt: list[int]) -> list[int]:
        """What the answer goes on from."""
        return prompt

    def _limit(self, prompt: int, request: GenerateRequest) -> int:
        """Tokens that an answer may have, after a prompt of so many. Raises UserError."""
        room = self.signature.max_length - prompt
        wanted = min(request.max_tokens or room, room) if request.clip and room > 0 else request.max_tokens
        if (wanted or 1) > room:
            raise UserError(
                f"the prompt has {prompt} tokens and {wanted or 1} more are asked for; the context holds {self.signature.max_length}.",
                where="max_tokens",
                remedy="Shorten the prompt or ask for fewer.",
            )
        return wanted or room

    def _prompt(self, request: GenerateRequest) -> list[int]:
        if (request.messages is None) == (request.prompt is None):
            raise UserError("either messages or a prompt is needed.", remedy="Give one of the two.")
        characters = sum(len(str(m.get("content", ""))) for m in request.messages or ()) + len(request.prompt or "")
        if characters > CHARACTERS_A_TOKEN * self.signature.max_length:
            raise UserError(
                f"the prompt has {characters} characters; the context holds {self.signature.max_length} tokens.",
                where="prompt" if request.messages is None else "messages",
                remedy="Shorten it.",
            )
        if request.prompt is not None:
            ids = self._unfinished(request.prompt)
            start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
            if not ids and start is not None:
                ids = [start]
        else:
            if not self.tokenizer.chat_template:
                raise Unsupported("this model has no chat template.", remedy="Send a prompt to /v1/completions.")
            try:
                ids = list(
                    self.tokenizer.apply_chat_template(
                        [dict(m) for m in request.messages or ()], add_generation_prompt=True, return_dict=False
                    )
                )
            except (jinja2.TemplateError, TypeError, KeyError, IndexError) as error:
                raise UserError(
                    f"the model's chat template refuses them: {error}.", where="messages", remedy="See the model's card."
                ) from error
        if not ids:
            raise UserError("is empty.", where="prompt", remedy="Send some text.")
        return ids

    def _unfinished(self, prompt: str) -> list[int]:
        """The prompt's ids, without the end-of-text or separator that some tokenizers put behind."""
        encoded = self.tokenizer(prompt, return_special_tokens_mask=True)
        added = encoded.special_tokens_mask  # 0 for a special token that stands in the prompt itself
        end = next((i + 1 for i in reversed(range(len(added))) if not added[i]), 0)
        return list(encoded.input_ids[:end])

    # ---- on the thread: the batch

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                while not self._wait():
                    self._turn()
        except Exception as error:  # the thread's edge: whoever waits must hear of it
            logger.exception("generation broke down")
            self.ended = RaybmError(
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
                    answer.send(_copy(self.ended or RaybmError("generation ended.")))

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


def _copy(error: RaybmError) -> RaybmError:
    """An exception of its own for each waiter: tracebacks grow on what is raised."""
    return RaybmError(error.what, where=error.where, remedy=error.remedy)


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    ends = model.generation_config.eos_token_id if model.generation_config else None
    if ends is None:
        ends = tokenizer.eos_token_id
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])

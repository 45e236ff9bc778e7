"""Generation with encoder-decoders: requests that wait start together as a wave, and leave it as they end.

Nobody joins a running wave, and all of a wave have as many tokens written (none, but where another replica began an answer): decoders
with positions of their own (BART) count them from a common start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from raybm.core.errors import Unsupported, UserError
from raybm.engines import features
from raybm.engines.protocol import GenerateRequest
from raybm.engines.transformers.adapters import Adapters
from raybm.engines.transformers.batch import Row, within_memory
from raybm.engines.transformers.generation import Answer, Generator
from raybm.engines.transformers.sampling import choose
from raybm.models.sequences import sources


class Rewriter(Generator):
    """An encoder-decoder that answers many requests at once (Generates)."""

    def _batch(self, model: PreTrainedModel) -> Wave:
        return Wave(model, self.adapters)

    def _prompt(self, request: GenerateRequest) -> list[int]:
        if request.prompt is None:
            raise Unsupported("this model rewrites a text and knows no messages.", remedy="Send a prompt to /v1/completions.")
        if not request.prompt.strip():
            raise UserError("is empty.", where="prompt", remedy="Send some text.")
        return sources(self.tokenizer, [request.prompt], self.signature.max_length)[0]

    def _check(self, request: GenerateRequest) -> None:
        features.check(request, "logprobs", "frequency_penalty and presence_penalty", "response_format")

    def _before(self, prompt: list[int]) -> list[int]:
        return []

    def _limit(self, prompt: int, request: GenerateRequest) -> int:
        """The context holds for either side: a long prompt was cut, and an answer of that length ends."""
        return min(request.max_tokens or self.signature.max_length, self.signature.max_length)

    def _held(self, rows: list[Answer]) -> int:
        return len(rows) * max(row.prompt_tokens + row.limit for row in rows)

    def _newcomers(self, staying: list[Answer]) -> list[Answer]:
        chosen: list[Answer] = []
        longest = 0
        with self.changed:
            while not staying and self.waiting and len(chosen) < self.max_batch:
                longest = max(longest, self.waiting[0].prompt_tokens + self.waiting[0].limit)
                if chosen and longest * (len(chosen) + 1) > self.cache_tokens:
                    break
                if chosen and self.waiting[0].produced != chosen[0].produced:
                    break
                chosen.append(self.waiting.popleft())
        return chosen


class Wave:
    """Rows that are decoded together, all as far as each other; the prompt of a row's `ids` is the encoder's. Under
    torch.inference_mode, on one thread; `regroup` and `step` as a language model's Batch has them."""

    def __init__(self, model: PreTrainedModel, adapters: Adapters) -> None:
        self.model, self.adapters, self.rows = model, adapters, list[Row]()
        settings = model.generation_config
        start = settings.decoder_start_token_id if settings.decoder_start_token_id is not None else model.config.decoder_start_token_id
        if start is None:
            raise Unsupported("this model does not say with which token its answers start.", remedy="Set decoder_start_token_id.")
        self.start = [start] + ([] if settings.forced_bos_token_id is None else [settings.forced_bos_token_id])
        padding = model.config.pad_token_id
        self.never = None if padding is None or padding == settings.eos_token_id else padding
        self.cache: Any = None
        self.tokens = self.mask = self.encoded = torch.empty(0)

    def regroup(self, keep: Sequence[int], newcomers: Sequence[Row]) -> list[int]:
        """Rows `keep` stay, or newcomers begin where none does. Returns the first token of each newcomer."""
        if newcomers:
            self.rows, self.cache = list(newcomers), None
            self.adapters.choose([row.adapter for row in self.rows])
            device = self.model.device
            sources = [row.ids[: row.prompt_tokens] for row in newcomers]
            width = max(len(source) for source in sources)
            padding = [width - len(source) for source in sources]
            ids = torch.tensor([source + [self.never or 0] * short for source, short in zip(sources, padding, strict=True)], device=device)
            self.mask = torch.tensor([[1] * (width - short) + [0] * short for short in padding], device=device)
            with within_memory():
                self.encoded = self.model.get_encoder()(input_ids=ids, attention_mask=self.mask).last_hidden_state
            return self._forward(torch.tensor([self.start + row.ids[row.prompt_tokens :] for row in newcomers], device=device))
        if len(keep) < len(self.rows):
            self.rows = [self.rows[i] for i in keep]
            self.adapters.choose([row.adapter for row in self.rows])
            index = torch.tensor(keep, dtype=torch.long, device=self.model.device)
            self.tokens, self.mask, self.encoded = self.tokens[index], self.mask[index], self.encoded[index]
            self.cache.batch_select_indices(index)
        return []

    def step(self) -> list[int]:
        """One more token for every row."""
        return self._forward(self.tokens[:, None])

    def _forward(self, ids: torch.Tensor) -> list[int]:
        with within_memory():
            output = self.model(
                encoder_outputs=(self.encoded,), attention_mask=self.mask, decoder_input_ids=ids, past_key_values=self.cache, use_cache=True
            )
        self.cache = output.past_key_values
        logits = output.logits[:, -1].float()
        if self.never is not None:
            logits[:, self.never] = -torch.inf  # T5's and Marian's answers start with it, and might go on with it
        self.tokens = choose(logits, self.rows)
        return list(self.tokens.tolist())

"""The running batch of a language model: rows of different ages in one left-padded key/value cache.

All rows end in the same column, so a step appends one column for everybody; rows join and leave between steps.

```
column      0 1 2 3 4 5 6
row a       . . a a a a A        . padding, masked out; A the token of this step
row b       b b b b b b B        a leaves: its row goes; b leaves: its row and columns 0, 1 go
```
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from raybm.core.errors import Unsupported
from raybm.engines.transformers.adapters import Adapters
from raybm.engines.transformers.sampling import Noted, choose
from raybm.engines.vocabulary import Constraint

SPARE = 64  # columns allocated ahead
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(eq=False)
class Row:
    """One sequence: its tokens, how they are chosen, and how many of them the cache holds."""

    ids: list[int]
    temperature: float = 0.0
    top_p: float = 1.0
    random: torch.Generator = field(default_factory=torch.Generator)
    cached: int = 0
    prompt_tokens: int = 0  # of `ids`; the others are the answer
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    constraint: Constraint | None = None
    logprobs: int | None = None  # how many of the likeliest tokens to note
    adapter: str | None = None
    likely: Noted | None = None  # of the token that was chosen last


class SpareLayer(DynamicLayer):
    """One layer's keys and values (rows, heads, columns, width) with columns allocated ahead: a step writes one column, where
    DynamicLayer copies the whole cache."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            self.room = (self.keys, self.values)
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if end > self.room[0].shape[2]:
            self.room = tuple(_place(end + SPARE, [(old, 0)], len(old)) for old in (self.keys, self.values))
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self.room)
        return self.keys, self.values

    def fill(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]], columns: int) -> None:
        """Holds these rows from now on, all of them ending in the last of `columns`."""
        rows = sum(len(keys) for keys, _ in parts)
        self.room = tuple(_place(columns + SPARE, [(part[i], columns - part[i].shape[2]) for part in parts], rows) for i in (0, 1))
        self.keys, self.values = (room[:, :, :columns] for room in self.room)


def _place(columns: int, parts: Sequence[tuple[torch.Tensor, int]], rows: int) -> torch.Tensor:
    """The parts' rows one under another in a new tensor, each part from its own column on, zeros before it (a mask does not hide NaN)."""
    first = parts[0][0]
    out = first.new_empty((rows, first.shape[1], columns, first.shape[3]))
    row = 0
    for part, start in parts:
        out[row : row + len(part), :, :start] = 0
        out[row : row + len(part), :, start : start + part.shape[2]] = part
        row += len(part)
    return out


class NoMemory(Exception):
    """What was computed did not fit into memory. The rows are as they were; the batch is of no use any more."""


@contextmanager
def within_memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise NoMemory from error


class Batch:
    """Rows that are generated together. All methods run under torch.inference_mode, on one thread."""

    def __init__(self, model: PreTrainedModel, adapters: Adapters) -> None:
        kinds = set(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ())
        accepted = inspect.signature(model.forward).parameters
        if not kinds <= ATTENTION or "past_key_values" not in accepted or getattr(model, "_is_stateful", False):
            raise Unsupported(
                f"{type(model).__name__} keeps a state other than keys and values.", remedy="Serve it with an engine that knows its layers."
            )
        self.model, self.adapters, self.rows = model, adapters, list[Row]()
        self.takes_positions = "position_ids" in accepted
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.cache = Cache(layer_class_to_replicate=SpareLayer)
        self.tokens = self.lengths = self.mask = torch.empty(0, dtype=torch.long, device=model.device)

    def regroup(self, keep: Sequence[int], newcomers: Sequence[Row]) -> list[int]:
        """Rows `keep` (indices) stay, the others leave; newcomers join. Returns the first token of each newcomer. Raises NoMemory."""
        stay = [self.rows[i] for i in keep]
        if not newcomers and len(stay) == len(self.rows):
            return []
        index = torch.tensor(keep, dtype=torch.long, device=self.model.device) if len(keep) < len(self.rows) else slice(None)
        with within_memory():
            logits, joined = self._prefill(newcomers) if newcomers else (None, None)
            if stay:
                width = max(row.cached for row in stay)  # in columns; narrower than the cache when the longest row leaves
                columns = max([width, *(len(row.ids) for row in newcomers)])
                for i, layer in enumerate(self.cache.layers):
                    parts = [tuple(old[index, :, old.shape[2] - width :] for old in (layer.keys, layer.values))]
                    if joined:
                        parts.append((joined.layers[i].keys, joined.layers[i].values))
                    layer.fill(parts, columns)
            else:
                self.cache = joined or Cache(layer_class_to_replicate=SpareLayer)
        first = self.tokens[:0] if logits is None else choose(logits, newcomers)  # the last that needs room: it draws
        self.tokens = torch.cat([self.tokens[index], first]) if stay else first
        self.rows = stay + list(newcomers)
        self.mask, self.lengths = self._mask(self.rows) if self.rows else (self.tokens, self.tokens)
        return list(first.tolist())

    def step(self) -> list[int]:
        """One more token for every row. Raises NoMemory."""
        with within_memory():
            self.mask = torch.cat([self.mask, self.mask.new_ones((len(self.rows), 1))], dim=1)
            logits = self._forward(self.rows, self.cache, self.tokens[:, None], self.mask, self.lengths[:, None])
        self.tokens = choose(logits, self.rows)
        self.lengths = self.lengths + 1
        for row in self.rows:
            row.cached += 1
        return list(self.tokens.tolist())

    def _prefill(self, rows: Sequence[Row]) -> tuple[torch.Tensor, Cache]:
        width = max(len(row.ids) for row in rows)
        for row in rows:
            row.cached = len(row.ids)
        ids = torch.tensor([[0] * (width - len(row.ids)) + row.ids for row in rows], device=self.model.device)
        mask, _ = self._mask(rows)
        cache = Cache(layer_class_to_replicate=SpareLayer)
        return self._forward(rows, cache, ids, mask, (mask.cumsum(1) - 1).clamp(min=0)), cache

    def _mask(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, columns) with 1 for tokens and 0 for padding, and the lengths (rows,)."""
        lengths = torch.tensor([row.cached for row in rows], device=self.model.device)
        columns = max(row.cached for row in rows)
        mask = torch.arange(columns, device=lengths.device) >= columns - lengths[:, None]
        return mask.long(), lengths

    def _forward(self, rows: Sequence[Row], cache: Cache, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits (rows, words) of what comes next."""
        self.adapters.choose([row.adapter for row in rows])
        even = len({row.cached for row in rows}) == 1  # no padding: attention without a mask is faster
        places = {"position_ids": positions} if self.takes_positions else {}
        output = self.model(
            input_ids=ids, attention_mask=None if even else mask, past_key_values=cache, use_cache=True, **places, **self.options
        )
        last: torch.Tensor = output.logits[:, -1]
        return last.to(torch.float32, copy=output.logits.shape[1] > 1)  # a view would keep those of all places

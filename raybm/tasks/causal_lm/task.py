"""Causal language modelling: next-token cross-entropy, over packed text or over the answers of conversations."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from raybm.core.errors import UserError
from raybm.core.signature import Signature
from raybm.models import own
from raybm.tasks.batching import IGNORED, pad, summed_cross_entropy, training_only
from raybm.tasks.causal_lm.spec import CausalLm
from raybm.tasks.conversations import conversation, exchange
from raybm.tasks.protocol import Batch, Column, LossSum, Row, Task

PROBED = 4  # tokens of each of two documents
SAME = {torch.float32: 1e-5}  # of the largest logit; kernels sum in other orders
SAME_IN_16_BIT = 2e-2


class CausalLmTask(Task):
    def __init__(self, spec: CausalLm) -> None:
        self.spec = spec

    def encode(self, rows: Sequence[Row], processor: Any, labels: Sequence[str], max_length: int) -> list[dict[str, Any]]:
        texts = [row["text"] for row in rows if row.get("text")]
        documents = iter(processor(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else [])
        start = processor("", verbose=False)["input_ids"][:1] if texts else []
        begin = start if start == [processor.bos_token_id] else []  # as Llama's tokenizer does, also before what is to be completed
        end = processor.eos_token_id
        return [
            _document([*begin, *next(documents)], end) if row.get("text") else self._conversation(row, processor, max_length)
            for row in rows
        ]

    def pack(self, rows: Sequence[dict[str, Any]], max_length: int) -> list[dict[str, Any]]:
        """Documents end to end in blocks of `max_length`; conversations whole, alone or as many as fit together."""
        conversations = [row for row in rows if not row.get("_document")]
        blocks = _blocks([row for row in rows if row.get("_document")], max_length)
        blocks += _fitting(conversations, max_length) if self.spec.packing else [[row] for row in conversations]
        return [row for row in map(_joined, blocks) if any(label != IGNORED for label in row["labels"])]

    def _conversation(self, row: Row, tokenizer: Any, max_length: int) -> dict[str, Any]:
        messages = row.get("messages")
        if messages is None or len(messages) == 0:
            messages = exchange(row.get("prompt"), row.get("completion"))
        return conversation(list(messages), tokenizer, max_length, self.spec.system_prompt)

    def model(self, folder: Path | None, config: Mapping[str, Any], labels: Sequence[str], processor: Any) -> PreTrainedModel:
        own.register()
        if folder is not None:
            return AutoModelForCausalLM.from_pretrained(folder, **config, dtype=torch.float32, use_safetensors=True)
        special = {name: getattr(processor, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        settings = {"vocab_size": len(processor), **special, **config}
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)

    def collate(self, rows: Sequence[Row], processor: Any, seed: int | None = None) -> Batch:
        """No mask: padding stands on the right, where a causal model does not look, and positions part what is packed."""
        filled = rows or [{"input_ids": [0, 0], "labels": [IGNORED, IGNORED], "position_ids": [0, 1]}]
        ids, _ = pad([row["input_ids"] for row in filled], processor.pad_token_id or 0)
        labels, _ = pad([row["labels"] for row in filled], IGNORED)
        positions = torch.arange(ids.shape[1]).repeat(len(filled), 1)
        for place, row in enumerate(filled):
            positions[place, : len(row["position_ids"])] = torch.from_numpy(np.array(row["position_ids"], np.int64))
            positions[place, len(row["position_ids"]) :] -= len(row["position_ids"]) - int(row["position_ids"][-1]) - 1
        return {"input_ids": ids, "position_ids": positions, "labels": labels}

    def units(self, batch: Batch) -> torch.Tensor:
        return (batch["labels"][:, 1:] != IGNORED).sum()

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossSum:
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        # The labels are moved and not the logits, of which a slice or a transposed view would be copied: on a CPU, 4 times the seconds.
        labels = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
        return summed_cross_entropy(logits, labels, training_only(model, self.spec.label_smoothing))

    @torch.no_grad()
    def check(self, model: torch.nn.Module, column: Column, device: torch.device) -> None:
        """Raises UserError where rows are packed and the model does not heed their positions: what it says of a document must not change
        with the tokens of another one before it."""
        if not any(np.count_nonzero(places == 0) > len(offsets) - 1 for offsets, places in column("position_ids")):
            return
        places = list(range(PROBED))
        ids = torch.tensor([[first] * PROBED + [place % 2 for place in places] for first in (0, 1)], device=device)
        model.eval()
        positions = torch.tensor([places + places] * 2, device=device)
        one, other = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, PROBED:].float()
        dtype = next(model.parameters()).dtype
        if (one - other).abs().max() > SAME.get(dtype, SAME_IN_16_BIT) * one.abs().max():
            name = type(getattr(model, "module", model)).__name__
            raise UserError(
                f"{name} lets packed documents see each other: it takes no notice of their positions.",
                where="model.ref",
                remedy="Take another model (Llama, Qwen, GPT-2, …), or train on `prompt` and `completion` without task.packing.",
            )

    def signature(self, labels: Sequence[str], max_length: int) -> Signature:
        return Signature(
            problem="causal_lm", protocols=("generates",), inputs=("messages", "prompt"), outputs=("text",), max_length=max_length
        )


def _document(ids: list[int], end: int) -> dict[str, Any]:
    whole = [*ids, end]
    return {"input_ids": whole, "labels": whole, "_document": True}


def _joined(pieces: Sequence[Row]) -> dict[str, Any]:
    """Several sequences as one. Positions start again with each, by which the model keeps them apart, and the first token of each
    is not to be predicted from the one before."""
    return {
        "input_ids": [token for piece in pieces for token in piece["input_ids"]],
        "labels": [IGNORED if place == 0 else label for piece in pieces for place, label in enumerate(piece["labels"])],
        "position_ids": [place for piece in pieces for place in range(len(piece["input_ids"]))],
    }


def _blocks(documents: Sequence[Row], length: int) -> list[list[Row]]:
    """The documents in order, cut where a block of `length` tokens is full."""
    blocks: list[list[Row]] = [[]]
    room = length
    for document in documents:
        start, ids = 0, document["input_ids"]
        while start < len(ids):
            if not room:
                blocks.append([])
                room = length
            piece = ids[start : start + room]
            blocks[-1].append({"input_ids": piece, "labels": piece})
            start, room = start + len(piece), room - len(piece)
    return blocks


def _fitting(rows: Sequence[Row], length: int) -> list[list[Row]]:
    """Whole rows that fit together into `length` tokens, best fit, the longest first."""
    blocks: list[list[Row]] = []
    rooms: list[int] = []  # sorted
    with_room: dict[int, list[int]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        needed = len(row["input_ids"])
        place = bisect_left(rooms, needed)
        if place < len(rooms):
            room = rooms.pop(place)
            block = with_room[room].pop()
        else:
            room, block = length, len(blocks)
            blocks.append([])
        blocks[block].append(row)
        if left := room - needed:
            insort(rooms, left)
            with_room[left].append(block)
    return blocks

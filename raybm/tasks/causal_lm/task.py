"""Causal language modelling: next-token cross-entropy, over packed text or over the answers of conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from raybm.core.errors import DataError
from raybm.core.signature import Signature
from raybm.models.chat import encode_conversation
from raybm.tasks.batching import IGNORED, pad
from raybm.tasks.causal_lm.spec import CausalLm
from raybm.tasks.protocol import Batch, LossSum


class CausalLmTask:
    def __init__(self, spec: CausalLm) -> None:
        self.spec = spec

    def labels(self, seen: Sequence[str]) -> tuple[str, ...]:
        return ()

    def encode(
        self, rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], max_length: int
    ) -> list[dict[str, Any]]:
        texts = [row["text"] for row in rows if row.get("text")]
        conversations = [self._conversation(row, tokenizer, max_length) for row in rows if not row.get("text")]
        return self._pack(texts, tokenizer, max_length) + conversations

    def _pack(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[dict[str, Any]]:
        """Documents end to end, each closed by the end-of-text token, cut into blocks of `max_length`."""
        if not texts:
            return []
        end = tokenizer.eos_token_id
        documents = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        stream = list(chain.from_iterable([*document, end] for document in documents))
        blocks = [stream[start : start + max_length] for start in range(0, len(stream), max_length)]
        return [{"input_ids": block, "labels": block} for block in blocks if len(block) > 1]

    def _conversation(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
        messages = row.get("messages")
        if messages is None or len(messages) == 0:
            messages = [{"role": "user", "content": row.get("prompt")}, {"role": "assistant", "content": row.get("completion")}]
        try:
            ids, labels = encode_conversation(tokenizer, list(messages), self.spec.system_prompt)
        except DataError as error:
            return {"_bad": error.what}
        if all(label == IGNORED for label in labels[1:max_length]):
            return {"_bad": f"no answer within the first {max_length} tokens"}
        return {"input_ids": ids[:max_length], "labels": labels[:max_length]}

    def model(
        self, folder: Path | None, config: Mapping[str, Any], labels: Sequence[str], tokenizer: PreTrainedTokenizerBase
    ) -> PreTrainedModel:
        if folder is not None:
            return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        settings = {"vocab_size": len(tokenizer), **special, **config}
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)

    def collate(self, rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        filled = rows or [{"input_ids": [0, 0], "labels": [IGNORED, IGNORED]}]
        ids, mask = pad([row["input_ids"] for row in filled], tokenizer.pad_token_id or 0)
        labels, _ = pad([row["labels"] for row in filled], IGNORED)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def units(self, batch: Batch) -> torch.Tensor:
        return (batch["labels"][:, 1:] != IGNORED).sum()

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossSum:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits.float().flatten(0, 1)
        # The labels are moved and not the logits, of which a slice or a transposed view would be copied: on a CPU, 4 times the seconds.
        labels = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED).flatten()
        total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return LossSum(total, (logits.detach().argmax(-1) == labels).sum())

    def predict_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
        return None

    def score(self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, Any]:
        return {}

    def signature(self, labels: Sequence[str], max_length: int) -> Signature:
        return Signature(
            problem="causal_lm", protocols=("generates",), inputs=("messages", "prompt"), outputs=("text",), max_length=max_length
        )

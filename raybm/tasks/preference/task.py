"""Preference: direct preference optimisation, a logistic loss on how much more a model likes the chosen answer than it did at the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from raybm.core.signature import Signature
from raybm.tasks.batching import IGNORED, pad
from raybm.tasks.causal_lm.spec import CausalLm
from raybm.tasks.conversations import conversation, exchange
from raybm.tasks.preference.policy import PolicyAndReference
from raybm.tasks.preference.spec import Preference
from raybm.tasks.protocol import Batch, LossSum, Row, Task


class PreferenceTask(Task):
    def __init__(self, spec: Preference) -> None:
        self.spec, self.speech = spec, CausalLm().build()

    def encode(self, rows: Sequence[Row], processor: Any, labels: Sequence[str], max_length: int) -> list[dict[str, Any]]:
        return [self._pair(row, processor, max_length) for row in rows]

    def _pair(self, row: Row, tokenizer: Any, max_length: int) -> dict[str, Any]:
        sides = {
            name: conversation(exchange(row["prompt"], row[name]), tokenizer, max_length, self.spec.system_prompt)
            for name in ("chosen", "rejected")
        }
        for name, side in sides.items():
            if "_bad" in side:
                return {"_bad": f"{name}: {side['_bad']}"}
        chosen, rejected = sides.values()
        if chosen["input_ids"] == rejected["input_ids"]:
            return {"_bad": f"chosen and rejected are the same in their first {max_length} tokens"}
        return chosen | {"rejected_ids": rejected["input_ids"], "rejected_labels": rejected["labels"]}

    def model(self, folder: Path | None, config: Mapping[str, Any], labels: Sequence[str], processor: Any) -> Any:
        """Policy and reference, both with the same weights."""
        policy = self.speech.model(folder, config, labels, processor)
        reference = deepcopy(policy) if folder is None else self.speech.model(folder, config, labels, processor)
        return PolicyAndReference(policy, reference)

    def published(self, model: Any) -> PreTrainedModel:
        policy: PreTrainedModel = model.policy
        return policy

    def compare(self, model: Any, start: Callable[[], Path], processor: Any) -> None:
        model.reference = self.speech.model(start(), {}, (), processor).requires_grad_(False).to(model.policy.device).eval()

    def collate(self, rows: Sequence[Row], processor: Any, seed: int | None = None) -> Batch:
        nothing = {"input_ids": [0, 0], "labels": [IGNORED, IGNORED], "rejected_ids": [0, 0], "rejected_labels": [IGNORED, IGNORED]}
        filled = rows or [nothing]
        padding = {"input_ids": processor.pad_token_id or 0, "rejected_ids": processor.pad_token_id or 0}
        return {name: pad([row[name] for row in filled], padding.get(name, IGNORED))[0] for name in nothing}

    def units(self, batch: Batch) -> torch.Tensor:
        return _counted(batch).sum()

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossSum:
        """DPO (Rafailov et al. 2023, arXiv:2305.18290, equation 7), with the smoothing of its conservative form (Mitchell 2023).
        `correct`: pairs of which the chosen answer gained more log-probability than the rejected one."""
        width = max(batch["input_ids"].shape[1], batch["rejected_ids"].shape[1])
        ids, labels = (
            torch.cat([F.pad(batch[name], (0, width - batch[name].shape[1]), value=value) for name in names])
            for names, value in ((("input_ids", "rejected_ids"), 0), (("labels", "rejected_labels"), IGNORED))
        )
        policy, reference = model(input_ids=ids, labels=labels)
        chosen, rejected = (policy - reference).chunk(2)
        margin, counted = self.spec.beta * (chosen - rejected), _counted(batch)
        wrong = self.spec.label_smoothing
        losses = -F.logsigmoid(margin) * (1 - wrong) - F.logsigmoid(-margin) * wrong
        return LossSum((losses * counted).sum(), ((margin.detach() > 0) & counted).sum())

    def signature(self, labels: Sequence[str], max_length: int) -> Signature:
        return self.speech.signature(labels, max_length)


def _counted(batch: Batch) -> torch.Tensor:
    return (batch["labels"] != IGNORED).any(1)

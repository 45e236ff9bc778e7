"""A language model that is trained beside the one it started from."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from raybm.tasks.batching import IGNORED


class PolicyAndReference(nn.Module):
    """Log-probabilities of answers under both; only the policy learns. The reference has no dropout even while the policy is trained."""

    def __init__(self, policy: PreTrainedModel, reference: PreTrainedModel) -> None:
        super().__init__()
        self.policy, self.reference = policy, reference.requires_grad_(False).eval()

    @property
    def config(self) -> Any:
        return self.policy.config

    def train(self, mode: bool = True) -> PolicyAndReference:
        super().train(mode)
        self.reference.eval()
        return self

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        self.policy.gradient_checkpointing_enable(**settings)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and labels (rows, tokens) → log p(answer | prompt) under policy and reference, (rows,) each."""
        with torch.no_grad():
            known = _log_probability(self.reference, input_ids, labels)
        return _log_probability(self.policy, input_ids, labels), known


def _log_probability(model: nn.Module, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """No mask: padding stands on the right, where a causal model does not look."""
    logits = model(input_ids=ids, use_cache=False).logits.float()
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    lost = F.cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=IGNORED, reduction="none")
    return -lost.view(following.shape).sum(1)

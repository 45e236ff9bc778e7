"""Convolutions over text with the largest value over time (Kim 2014, arXiv:1408.5882), in transformers' interface."""

from __future__ import annotations

from dataclasses import field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class TextCnnConfig(PreTrainedConfig):
    """`filters` of each width in `windows`, over embeddings of `hidden_size`."""

    model_type = "raybm_textcnn"

    vocab_size: int = 8000
    hidden_size: int = 256
    windows: list[int] = field(default_factory=lambda: [3, 4, 5])
    filters: int = 100
    dropout: float = 0.5
    initializer_range: float = 0.1
    pad_token_id: int | None = None


class TextCnnForSequenceClassification(PreTrainedModel):
    config_class = TextCnnConfig

    def __init__(self, config: TextCnnConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.convolutions = nn.ModuleList(nn.Conv1d(config.hidden_size, config.filters, window) for window in config.windows)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.filters * len(config.windows), config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> SequenceClassifierOutput:
        """`attention_mask`: 1 for tokens, 0 for the padding on their right. A window starts at every token and sees zeros beyond the last,
        so that one short text has the same result alone and in a batch."""
        mask = (torch.ones_like(input_ids) if attention_mask is None else attention_mask)[:, None] == 1
        inputs = self.embeddings(input_ids).transpose(1, 2).masked_fill(~mask, 0.0)
        found = []
        for window, convolution in zip(self.config.windows, self.convolutions, strict=True):
            values = convolution(F.pad(inputs, (0, window - 1))).relu()
            found.append(values.masked_fill(~mask, 0.0).amax(2))
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(torch.cat(found, 1))))

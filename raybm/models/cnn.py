"""A small convolutional network for pictures, in transformers' interface: to start from scratch with, or to compare others with."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput


class CnnConfig(PreTrainedConfig):
    """A stage for each of `widths` (channels): `depth` convolutions of 3 × 3, after which the sides are halved."""

    model_type = "raybm_cnn"

    num_channels: int = 3
    widths: list[int] = field(default_factory=lambda: [32, 64, 128])
    depth: int = 1
    dropout: float = 0.0


class CnnForImageClassification(PreTrainedModel):
    """Groups of channels are normalised (Wu and He 2018, arXiv:1803.08494) and not batches: a picture has the same result alone and in a
    batch, and ranks need not agree on running means."""

    config_class = CnnConfig
    main_input_name = "pixel_values"

    def __init__(self, config: CnnConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = []
        channels = config.num_channels
        for width in config.widths:
            for _ in range(config.depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.GroupNorm(math.gcd(width, 8), width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(channels, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> ImageClassifierOutput:
        """`pixel_values`: (rows, channels, height, width)."""
        return ImageClassifierOutput(logits=self.classifier(self.dropout(self.features(pixel_values).mean((2, 3)))))

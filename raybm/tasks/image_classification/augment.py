"""Random changes to a batch of pictures: one affine map each, then colours, then pairs of pictures laid over each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from raybm.tasks.image_classification.spec import Augment

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's conversion to "L"


def augment(pixels: torch.Tensor, spec: Augment, random: np.random.Generator) -> torch.Tensor:
    """Values from 0 to 1 (rows, channels, height, width) → the same, changed as `spec` says. Pixels from beyond an edge are the edge's."""
    if not len(pixels):
        return pixels
    if spec.crop or spec.flip or spec.rotate or spec.scale:
        grid = F.affine_grid(_maps(pixels.shape, spec, random), list(pixels.shape), align_corners=False)
        pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return _coloured(pixels, spec.colour, random) if spec.colour else pixels


def _maps(shape: torch.Size, spec: Augment, random: np.random.Generator) -> torch.Tensor:
    """(rows, 2, 3): from places in the result to places in the picture, both from -1 to 1."""
    rows, height, width = shape[0], shape[2], shape[3]

    def even(low: float, high: float) -> Any:
        return random.uniform(low, high, rows)

    window = 1 - even(0, spec.crop)  # share of the side that stays
    angle = np.deg2rad(even(-spec.rotate, spec.rotate))
    zoom = window / even(1 - spec.scale, 1 + spec.scale)
    mirror = np.where(random.random(rows) < 0.5, -1.0, 1.0) if spec.flip else np.ones(rows)
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    right, down = ((1 - window) * even(-1, 1) for _ in range(2))
    maps = [[cos * mirror, -sin * height / width, right], [sin * mirror * width / height, cos, down]]
    return torch.from_numpy(np.array(maps, np.float32).transpose(2, 0, 1).copy())


def _coloured(pixels: torch.Tensor, most: float, random: np.random.Generator) -> torch.Tensor:
    def factors() -> torch.Tensor:
        return torch.from_numpy(random.uniform(1 - most, 1 + most, (len(pixels), 1, 1, 1)).astype(np.float32))

    pixels = pixels * factors()
    middle = pixels.mean((1, 2, 3), keepdim=True)
    pixels = middle + (pixels - middle) * factors()
    if pixels.shape[1] == len(GREY):
        grey = (pixels * torch.tensor(GREY).view(1, -1, 1, 1)).sum(1, keepdim=True)
        pixels = grey + (pixels - grey) * factors()
    return pixels.clamp(0, 1)


def mix(pixels: torch.Tensor, alpha: float, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mixup: the pictures with others of the batch over them, the place of each one's other, and the share of its own."""
    share = float(random.beta(alpha, alpha))
    others = torch.from_numpy(random.permutation(len(pixels)))
    return share * pixels + (1 - share) * pixels[others], others, share

"""Small pictures for tests."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from raybm.models import dataurl


def png(pixels: Any) -> bytes:
    """(height, width) or (height, width, 3) → the file."""
    data = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(data, "PNG")
    return data.getvalue()


def noise(seed: int, shape: tuple[int, ...] = (20, 30, 3)) -> bytes:
    return png(np.random.default_rng(seed).integers(0, 256, shape))


def url(seed: int, shape: tuple[int, ...] = (20, 30, 3)) -> str:
    return dataurl.encode(noise(seed, shape))

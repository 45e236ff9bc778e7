"""Weights that are stored in half precision, to compute with in fp32: converted once, into a file whose pages all replicas share."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from raybm.core.errors import DeadlineExceeded, StorageError
from raybm.models.cache import once
from raybm.models.references import fingerprint

logger = logging.getLogger(__name__)

HALVES = {"BF16", "F16"}
"""In the heads of safetensors (https://github.com/huggingface/safetensors#format)."""


def in_fp32(folder: Path) -> Path:
    """A folder with weights and config: one in the cache where some are stored in half precision; else, and for quantised ones, and where
    the cache has no room, this one. The numbers are the same."""
    files = sorted(folder.glob("*.safetensors"))
    if "quantization_config" in json.loads((folder / "config.json").read_text()) or not any(_types(file) & HALVES for file in files):
        return folder
    state = f"{folder.absolute()} {fingerprint(f'file:{folder}')} fp32"
    try:
        return once(f"weights-{hashlib.sha256(state.encode()).hexdigest()[:16]}", lambda aside: _convert(folder, files, aside))
    except (StorageError, DeadlineExceeded) as error:
        logger.warning("each replica has a copy of the weights: %s", error)
        return folder


def _types(file: Path) -> set[str]:
    with safe_open(file, "pt") as tensors:
        return {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118  (it is no dict)


def _convert(folder: Path, files: list[Path], aside: Path) -> None:
    for file in folder.glob("*.json"):
        shutil.copyfile(file, aside / file.name)
    for file in files:
        with safe_open(file, "pt") as tensors:
            made = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        made = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in made.items()}
        save_file(made, aside / file.name, metadata={"format": "pt"})

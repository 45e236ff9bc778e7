"""Weights in another type than they are stored in: converted once a machine, into a file whose pages all replicas on it share."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from raybm.models.cache import once
from raybm.models.references import fingerprint

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
"""In the heads of safetensors (https://github.com/huggingface/safetensors#format)."""
WHOLE = {"I64", "I32", "BOOL"}
"""Of buffers; other types are quantised weights, which transformers converts itself."""


def in_type(folder: Path, dtype: torch.dtype) -> Path:
    """A folder with the weights in this type and the config: this one, where they are stored so, or one in the cache. Raises what `once`
    raises."""
    files = sorted(folder.glob("*.safetensors"))
    stored = {kind for file in files for kind in _types(file)} - WHOLE
    if stored <= {NAMES[dtype]} or not stored <= set(NAMES.values()):
        return folder
    state = f"{folder.absolute()} {fingerprint(f'file:{folder}')} {dtype}"
    return once(f"weights-{hashlib.sha256(state.encode()).hexdigest()[:16]}", lambda aside: _convert(folder, files, dtype, aside))


def _types(file: Path) -> set[str]:
    with safe_open(file, "pt") as tensors:
        return {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118  (it is no dict)


def _convert(folder: Path, files: list[Path], dtype: torch.dtype, aside: Path) -> None:
    for file in folder.glob("*.json"):
        shutil.copyfile(file, aside / file.name)
    for file in files:
        with safe_open(file, "pt") as tensors:
            made = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        made = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in made.items()}
        save_file(made, aside / file.name, metadata={"format": "pt"})

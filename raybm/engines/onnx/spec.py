"""Settings of the onnx engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raybm.engines.base import EncodingEngine

if TYPE_CHECKING:
    from raybm.engines.protocol import Engine


class Onnx(EncodingEngine):
    """ONNX Runtime on CPUs, for encoders of texts and for image classifiers (extra `onnx`). The model is exported once a machine."""

    kind: Literal["onnx"] = "onnx"
    precision: Literal["fp32", "int8"] = "fp32"
    """int8: weights of matrix products in 8 bit, their inputs rounded to 8 bit as they come; answers differ a little."""

    def build(self, model_dir: Path) -> Engine:
        from raybm.engines.onnx.engine import build

        return build(self, model_dir)

"""An ONNX graph with the face of a transformers model, as far as encoders look at one: call, config, device, dtype."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import torch


class Session:
    """A graph that ONNX Runtime computes on CPUs. Safe to call from several threads."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, path: Path, config: Any, threads: int) -> None:
        self.config = config
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other replicas have this machine's cores too
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        self._outputs = [entry.name for entry in self._session.get_outputs()]

    def __call__(self, **inputs: torch.Tensor) -> Any:
        """Tensors by their names in and out. An input that the graph has and the caller does not give is zero: token types."""
        some = next(iter(inputs.values()))
        feed = {name: (inputs[name] if name in inputs else torch.zeros_like(some)).numpy() for name in self._inputs}
        made = self._session.run(self._outputs, feed)
        return SimpleNamespace(**{name: torch.from_numpy(array) for name, array in zip(self._outputs, made, strict=True)})

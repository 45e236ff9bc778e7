"""From a model's folder to an ONNX graph, once a machine: `torch.onnx`'s exporter, and a look at whether the graph answers alike."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers

from raybm.core.errors import Unsupported
from raybm.engines.encoders.problems import ENCODERS
from raybm.engines.onnx.session import Session
from raybm.models import own
from raybm.models.cache import once
from raybm.models.images import ImageProcessor
from raybm.models.references import fingerprint

logger = logging.getLogger(__name__)

GRAPH = "model.onnx"
TOLERANCE = 1e-3  # of the greatest output; fp32 in another order differs by some 1e-6
ROOM = 2**31 - 2**24  # bytes of a protobuf; above, weights lie in a file beside the graph
WORDS = ("one", "two words", "here are three", "a longer text of many more words than the others have")


def exported(folder: Path, problem: str, precision: str) -> Path:
    """The graph of the model in `folder`, out of the cache. Raises Unsupported, and what `once` raises."""
    state = [str(folder), fingerprint(f"file:{folder}"), torch.__version__, transformers.__version__, onnxruntime.__version__]
    name = f"onnx-{hashlib.sha256(' '.join(state).encode()).hexdigest()[:16]}"
    plain = once(name, lambda aside: _export(folder, problem, aside / GRAPH)) / GRAPH
    return plain if precision == "fp32" else once(f"{name}-{precision}", lambda aside: _quantize(plain, aside / GRAPH)) / GRAPH


def _export(folder: Path, problem: str, target: Path) -> None:
    own.register()
    encoding = ENCODERS[problem]
    model = encoding.family.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True).eval()
    processor = encoding.processor.from_pretrained(folder, local_files_only=True)
    try:
        _write(_Ordered(model, encoding.outputs), _samples(processor, WORDS[2:]), encoding.outputs, target)
        for texts in (WORDS[:1], WORDS):
            _compare(model, Session(target, model.config, 1), _samples(processor, texts), encoding.outputs)
    except Exception as error:
        logger.info("the export failed", exc_info=error)
        what = f"a {model.config.model_type} model cannot be exported to ONNX ({type(error).__name__})."
        raise Unsupported(what, where=str(folder), remedy="Serve it with the transformers engine.") from error


def _quantize(plain: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    large = sum(path.stat().st_size for path in plain.parent.iterdir()) > ROOM
    quantize_dynamic(plain, target, weight_type=QuantType.QInt8, per_channel=True, use_external_data_format=large)


class _Ordered(torch.nn.Module):
    """The model as a function of tensors in a fixed order, to tensors: what an exporter traces."""

    def __init__(self, model: torch.nn.Module, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs
        self.names: tuple[str, ...] = ()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(**dict(zip(self.names, inputs, strict=True)))
        return tuple(getattr(output, name) for name in self.outputs)


def _write(model: _Ordered, sample: Mapping[str, torch.Tensor], outputs: Sequence[str], target: Path) -> None:
    model.names = tuple(sample)
    free = torch.export.Dim.DYNAMIC
    shapes = tuple({0: free} if tensor.ndim > 2 else {0: free, 1: free} for tensor in sample.values())  # pictures have one size
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of names of axes, and of torch's own deprecations
        program = torch.onnx.export(
            model.eval(),
            tuple(sample.values()),
            dynamo=True,
            dynamic_shapes=(shapes,),
            input_names=list(sample),
            output_names=list(outputs),
            verbose=False,
        )
        program.save(target, external_data=model.model.num_parameters() * 4 > ROOM)


def _samples(processor: Any, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """As many inputs as there are texts; of a processor of pictures, noise."""
    if isinstance(processor, ImageProcessor):
        noise = np.random.default_rng(0).normal(size=(len(texts), processor.channels, processor.height, processor.width))
        return {"pixel_values": torch.from_numpy(noise.astype(np.float32))}
    batch = processor(list(texts), padding=True, padding_side="right", return_tensors="pt")
    return {name: batch[name] for name in processor.model_input_names if name in batch}


def _compare(model: Any, session: Session, sample: Mapping[str, torch.Tensor], outputs: Sequence[str]) -> None:
    with torch.inference_mode():
        expected = model(**sample)
    found = session(**sample)
    for name in outputs:
        one, other = getattr(expected, name), getattr(found, name)
        if one.shape != other.shape or (one - other).abs().max() > TOLERANCE * max(1.0, float(one.abs().max())):
            raise ValueError(f"{name} of the graph is not the model's")

"""The onnx engine: the answers of encoders, computed by ONNX Runtime."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import AutoConfig

from raybm.core.errors import Unsupported
from raybm.engines.encoders.problems import ENCODERS
from raybm.engines.onnx.spec import Onnx
from raybm.engines.protocol import Engine
from raybm.models import own
from raybm.models.signature import infer_signature

logger = logging.getLogger(__name__)


def build(spec: Onnx, folder: Path) -> Engine:
    """The engine for a folder of safetensors, config and processor. Raises Unsupported, NotFound, DeadlineExceeded (another process's
    export)."""
    signature = infer_signature(folder)
    encoding = ENCODERS.get(signature.problem)
    if encoding is None or not encoding.outputs or (signature.problem == "regression" and signature.inputs != ("text",)):
        remedy = "Serve it with another engine, such as transformers."
        raise Unsupported(f"a model for {signature.problem} is nothing that the onnx engine serves.", where=str(folder), remedy=remedy)
    try:
        from raybm.engines.onnx.export import exported
        from raybm.engines.onnx.session import Session
    except ModuleNotFoundError as error:
        raise Unsupported(f"{error.name} is not installed.", where="engine.kind", remedy="pip install 'raybm[onnx]'") from None
    own.register()
    graph = exported(folder.absolute(), signature.problem, spec.precision)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    processor = encoding.processor.from_pretrained(folder, local_files_only=True)
    threads = torch.get_num_threads()  # what Ray gives the replica
    logger.info("%s in ONNX Runtime, %s, %d threads", signature.problem, spec.precision, threads)
    return encoding.build(Session(graph, config, threads), processor, signature, spec.max_batch, folder)

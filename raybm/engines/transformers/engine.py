"""The transformers engine: loads a folder and answers as its signature says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from raybm.core.errors import Unsupported
from raybm.engines.encoders.problems import ENCODERS
from raybm.engines.protocol import Engine
from raybm.engines.transformers.generation import Generator
from raybm.engines.transformers.seq2seq import Rewriter
from raybm.engines.transformers.spec import Transformers
from raybm.engines.transformers.weights import in_fp32
from raybm.models import own
from raybm.models.signature import infer_signature

logger = logging.getLogger(__name__)

TYPES = {"auto": "auto", "fp32": torch.float32, "bf16": torch.bfloat16}
GENERATORS: dict[str, tuple[Any, type[Generator]]] = {
    "causal_lm": (AutoModelForCausalLM, Generator),
    "seq2seq": (AutoModelForSeq2SeqLM, Rewriter),
}


def build(spec: Transformers, folder: Path) -> Engine:
    """The engine for a folder of safetensors, config and processor, on the GPU where there is one. Raises Unsupported, NotFound."""
    signature = infer_signature(folder)
    problem = signature.problem
    if problem not in GENERATORS and problem not in ENCODERS:
        raise Unsupported(f"a model for {problem} is nothing it can serve.", where=str(folder), remedy="See its signature.json.")
    if spec.adapters and problem not in GENERATORS:
        what = f"a model for {problem} has none."
        raise Unsupported(what, where="engine.adapters", remedy="Merge the adapter into the model, and serve that.")
    own.register()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    family = GENERATORS[problem][0] if problem in GENERATORS else ENCODERS[problem].family
    dtype = TYPES[spec.precision]
    stored = in_fp32(folder) if device == "cpu" and spec.precision == "fp32" else folder
    model = family.from_pretrained(stored, dtype=dtype, use_safetensors=True, local_files_only=True).to(device).eval()
    processors = AutoTokenizer if problem in GENERATORS else ENCODERS[problem].processor
    processor = processors.from_pretrained(folder, local_files_only=True)
    if problem == "causal_lm" and not model.can_generate():
        what = f"a {model.config.model_type} model has no key/value cache to generate with."
        raise Unsupported(what, where=str(folder), remedy="It can be trained and evaluated; serve a Transformer.")
    logger.info("%s on %s, %s", problem, device, model.dtype)
    if problem in GENERATORS:
        return GENERATORS[problem][1](model, processor, signature, spec)
    return ENCODERS[problem].build(model, processor, signature, spec.max_batch, folder)

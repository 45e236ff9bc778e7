"""The transformers engine: loads a folder and answers as its signature says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from raybm.core.errors import Unsupported
from raybm.engines.transformers.encoding import Classifier, Embedder
from raybm.engines.transformers.generation import Generator
from raybm.engines.transformers.spec import Transformers
from raybm.models.signature import infer_signature

logger = logging.getLogger(__name__)

TYPES = {"auto": "auto", "fp32": torch.float32, "bf16": torch.bfloat16}


def build(spec: Transformers, folder: Path) -> Generator | Classifier | Embedder:
    """The engine for a folder of safetensors, config and tokenizer, on the GPU where there is one. Raises Unsupported, NotFound."""
    signature = infer_signature(folder)
    if "generates" in signature.protocols:
        family: Any = AutoModelForCausalLM
    elif "predicts" in signature.protocols:
        family = AutoModelForSequenceClassification
    elif "embeds" in signature.protocols:
        family = AutoModel
    else:
        raise Unsupported(f"a model for {signature.problem} is nothing it can serve.", where=str(folder), remedy="See its signature.json.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = family.from_pretrained(folder, dtype=TYPES[spec.precision], use_safetensors=True, local_files_only=True).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    logger.info("%s on %s, %s", signature.problem, device, model.dtype)
    if family is AutoModelForCausalLM:
        return Generator(model, tokenizer, signature, spec)
    if family is AutoModelForSequenceClassification:
        return Classifier(model, tokenizer, signature, spec.max_batch)
    return Embedder(model, tokenizer, signature, spec.max_batch, folder)

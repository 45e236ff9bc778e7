"""The transformers engine: loads a folder and answers as its signature says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from raybm.core.errors import Unsupported
from raybm.core.signature import Signature
from raybm.engines.protocol import Engine
from raybm.engines.transformers.encoding import Classifier, Embedder
from raybm.engines.transformers.filling import Filler
from raybm.engines.transformers.generation import Generator
from raybm.engines.transformers.reading import Reader
from raybm.engines.transformers.regression import TextOrColumns, regressor
from raybm.engines.transformers.seq2seq import Rewriter
from raybm.engines.transformers.spec import Transformers
from raybm.engines.transformers.tagging import Tagger
from raybm.engines.transformers.vision import ImageClassifier, ImageTextEmbedder
from raybm.models import own
from raybm.models.image_text import ImageTextProcessor
from raybm.models.images import ImageProcessor
from raybm.models.signature import infer_signature

logger = logging.getLogger(__name__)

TYPES = {"auto": "auto", "fp32": torch.float32, "bf16": torch.bfloat16}

Builder = Callable[[Any, Any, Signature, Transformers, Path], Engine]
"""Model, processor, signature, spec, folder → engine."""


def _batched(kind: Callable[[Any, Any, Signature, int], Engine]) -> Builder:
    """An engine that needs no more than how many rows to compute together."""
    return lambda model, processor, signature, spec, _: kind(model, processor, signature, spec.max_batch)


PROBLEMS: dict[str, tuple[Any, Any, Builder]] = {
    "causal_lm": (AutoModelForCausalLM, AutoTokenizer, lambda *parts: Generator(*parts[:4])),
    "seq2seq": (AutoModelForSeq2SeqLM, AutoTokenizer, lambda *parts: Rewriter(*parts[:4])),
    "text_classification": (AutoModelForSequenceClassification, AutoTokenizer, _batched(Classifier)),
    "regression": (AutoModelForSequenceClassification, TextOrColumns, _batched(regressor)),
    "token_classification": (AutoModelForTokenClassification, AutoTokenizer, _batched(Tagger)),
    "question_answering": (AutoModelForQuestionAnswering, AutoTokenizer, _batched(Reader)),
    "masked_lm": (AutoModelForMaskedLM, AutoTokenizer, _batched(Filler)),
    "image_classification": (AutoModelForImageClassification, ImageProcessor, _batched(ImageClassifier)),
    "image_text": (AutoModel, ImageTextProcessor, _batched(ImageTextEmbedder)),
    "embedding": (
        AutoModel,
        AutoTokenizer,
        lambda model, tokenizer, signature, spec, folder: Embedder(model, tokenizer, signature, spec.max_batch, folder),
    ),
}
"""A signature's problem → what loads the model, what loads its processor, and what answers with them."""


def build(spec: Transformers, folder: Path) -> Engine:
    """The engine for a folder of safetensors, config and processor, on the GPU where there is one. Raises Unsupported, NotFound."""
    signature = infer_signature(folder)
    if signature.problem not in PROBLEMS:
        raise Unsupported(f"a model for {signature.problem} is nothing it can serve.", where=str(folder), remedy="See its signature.json.")
    family, processors, builder = PROBLEMS[signature.problem]
    own.register()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = family.from_pretrained(folder, dtype=TYPES[spec.precision], use_safetensors=True, local_files_only=True).to(device).eval()
    processor = processors.from_pretrained(folder, local_files_only=True)
    if signature.problem == "causal_lm" and not model.can_generate():
        what = f"a {model.config.model_type} model has no key/value cache to generate with."
        raise Unsupported(what, where=str(folder), remedy="It can be trained and evaluated; serve a Transformer.")
    logger.info("%s on %s, %s", signature.problem, device, model.dtype)
    return builder(model, processor, signature, spec, folder)

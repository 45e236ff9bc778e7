"""Which encoder answers a model's problem: what loads it, what it reads of the model's output, and what answers with that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from raybm.core.signature import Signature
from raybm.engines.encoders.encoding import Classifier, Embedder
from raybm.engines.encoders.filling import Filler
from raybm.engines.encoders.reading import Reader
from raybm.engines.encoders.regression import TextOrColumns, regressor
from raybm.engines.encoders.tagging import Tagger
from raybm.engines.encoders.vision import ImageClassifier, ImageTextEmbedder
from raybm.engines.protocol import Engine
from raybm.models.image_text import ImageTextProcessor
from raybm.models.images import ImageProcessor


@dataclass(frozen=True)
class Encoding:
    """`build` takes the model (whatever is called like a transformers model and has its config, device and dtype), the processor, the
    signature, how many rows to compute together, and the folder."""

    family: Any
    processor: Any
    outputs: tuple[str, ...]
    build: Callable[[Any, Any, Signature, int, Path], Engine]


def _plain(kind: Callable[[Any, Any, Signature, int], Engine]) -> Callable[[Any, Any, Signature, int, Path], Engine]:
    return lambda model, processor, signature, max_batch, _: kind(model, processor, signature, max_batch)


ENCODERS: dict[str, Encoding] = {
    "text_classification": Encoding(AutoModelForSequenceClassification, AutoTokenizer, ("logits",), _plain(Classifier)),
    "regression": Encoding(AutoModelForSequenceClassification, TextOrColumns, ("logits",), _plain(regressor)),
    "token_classification": Encoding(AutoModelForTokenClassification, AutoTokenizer, ("logits",), _plain(Tagger)),
    "question_answering": Encoding(AutoModelForQuestionAnswering, AutoTokenizer, ("start_logits", "end_logits"), _plain(Reader)),
    "masked_lm": Encoding(AutoModelForMaskedLM, AutoTokenizer, ("logits",), _plain(Filler)),
    "image_classification": Encoding(AutoModelForImageClassification, ImageProcessor, ("logits",), _plain(ImageClassifier)),
    "image_text": Encoding(AutoModel, ImageTextProcessor, (), _plain(ImageTextEmbedder)),  # two towers, each with an output of its own
    "embedding": Encoding(AutoModel, AutoTokenizer, ("last_hidden_state",), Embedder),
}

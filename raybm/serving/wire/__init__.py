"""The wire: OpenAI's requests and answers, vLLM's, and ours for predictions. Knows no Ray and no engine."""

from raybm.serving.wire.base import Inputs, InvalidRequest, Json, Wire, read, usage
from raybm.serving.wire.chat import Chat
from raybm.serving.wire.completion import Completion
from raybm.serving.wire.generation import Generation
from raybm.serving.wire.models import model, models
from raybm.serving.wire.predictions import Classify, ClassifyImages, Predict
from raybm.serving.wire.tokens import Detokenize, Tokenize
from raybm.serving.wire.vectors import Compare, Embed, Rerank, Score

__all__ = [
    "Chat",
    "Classify",
    "ClassifyImages",
    "Compare",
    "Completion",
    "Detokenize",
    "Embed",
    "Generation",
    "Inputs",
    "InvalidRequest",
    "Json",
    "Predict",
    "Rerank",
    "Score",
    "Tokenize",
    "Wire",
    "model",
    "models",
    "read",
    "usage",
]

"""What a model is told not to be able to do, with what it can."""

from __future__ import annotations

from raybm.core.errors import Unsupported
from raybm.core.signature import Protocol, Signature

_ASKS: dict[Protocol, str] = {
    "generates": "/v1/chat/completions and /v1/completions",
    "embeds": "/v1/embeddings, /v1/score and /v1/rerank",
    "predicts": "/v1/classify and /v1/images/classify",
}


def needs(model: str, signature: Signature, protocol: Protocol) -> None:
    """Raises Unsupported where the model does not have it."""
    if protocol not in signature.protocols:
        raise cannot(model, signature, protocol)


def cannot(model: str, signature: Signature, protocol: Protocol) -> Unsupported:
    answers = [_ASKS[one] for one in signature.protocols]
    asked = _ASKS[protocol]
    if signature.pairs:
        answers.append("/v1/score and /v1/rerank")
        asked = asked.replace(", /v1/score and /v1/rerank", "")
    return Unsupported(f"the model {model} does not answer {asked}.", remedy=f"It answers {' and '.join(answers)}.")


def no_tokenizer(model: str) -> Unsupported:
    return Unsupported(f"the model {model} has no tokenizer to ask.", remedy="Ask a language model or an encoder of texts.")

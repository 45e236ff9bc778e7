"""What a model folder can do: its signature.json, or what its config.json says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raybm.core.errors import NotFound, Unsupported
from raybm.core.signature import Signature

_DEFAULT_LENGTH = 512
_UNBOUNDED = 10**9  # tokenizers without a limit state 1e30
_ROBERTA_LIKE = ("roberta", "xlm-roberta", "camembert", "mpnet")  # their positions start at padding + 1


def infer_signature(folder: Path) -> Signature:
    """The folder's signature.json, or one inferred from the config's `architectures`: …ForSequenceClassification,
    …ForTokenClassification and …ForQuestionAnswering predict, …ForCausalLM and …ForConditionalGeneration generate, a bare encoder
    embeds. Raises NotFound, Unsupported, SpecError."""
    if (own := Signature.read(folder)) is not None:
        return own
    config = _json(folder / "config.json")
    if config is None:
        raise NotFound("there is no config.json.", where=str(folder), remedy="Give the folder of a transformers model.")
    architecture = (config.get("architectures") or [""])[0]
    length = _length(config, folder)
    if architecture.endswith("ForSequenceClassification"):
        labels = _labels(config)
        several = config.get("problem_type") == "multi_label_classification"
        if len(labels) == 1 and not several:
            return Signature(
                problem="regression", protocols=("predicts",), inputs=("text",), outputs=("value",), pairs=True, max_length=length
            )
        return Signature(
            problem="text_classification",
            protocols=("predicts",),
            inputs=("text",),
            outputs=("labels", "scores") if several else ("label", "score", "scores"),
            labels=labels,
            max_length=length,
        )
    if config.get("is_encoder_decoder") and architecture.endswith(("ForConditionalGeneration", "MTModel")):
        return Signature(problem="seq2seq", protocols=("generates",), inputs=("prompt",), outputs=("text",), max_length=length)
    if architecture.endswith("ForTokenClassification"):
        return Signature(
            problem="token_classification",
            protocols=("predicts",),
            inputs=("tokens",),
            outputs=("tags",),
            labels=_labels(config),
            max_length=length,
        )
    if architecture.endswith("ForImageClassification"):
        return Signature(
            problem="image_classification",
            protocols=("predicts",),
            inputs=("image",),
            outputs=("label", "score", "scores"),
            labels=_labels(config),
            max_length=length,
        )
    if architecture.endswith("Model") and {"vision_config", "text_config"} <= set(config):
        return Signature(
            problem="image_text", protocols=("embeds", "predicts"), inputs=("image", "text"), outputs=("embedding",), max_length=length
        )
    if architecture.endswith("ForQuestionAnswering"):
        return Signature(
            problem="question_answering",
            protocols=("predicts",),
            inputs=("question", "context"),
            outputs=("answer", "score", "start", "end"),
            max_length=length,
        )
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return Signature(problem="causal_lm", protocols=("generates",), inputs=("messages", "prompt"), outputs=("text",), max_length=length)
    if architecture.endswith(("Model", "ForMaskedLM", "ForPreTraining")) and not config.get("is_encoder_decoder"):
        return Signature(problem="embedding", protocols=("embeds",), inputs=("text",), outputs=("embedding",), max_length=length)
    raise Unsupported(
        f"{architecture or 'a config without architectures'} is nothing that raybm knows.",
        where=str(folder),
        remedy="It takes classifiers of texts and tokens, readers, …ForCausalLM, …ForConditionalGeneration, encoders, or a folder with a "
        "signature.json.",
    )


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    names = config.get("id2label") or {}
    return tuple(str(names[key]) for key in sorted(names, key=int)) or tuple(f"LABEL_{i}" for i in range(config.get("num_labels", 2)))


def positions(folder: Path) -> int | None:
    """Longest sequence in tokens that the model in `folder` has positions for; None where its config sets no bound."""
    return positions_in(_json(folder / "config.json") or {})


def embedded_tokens(folder: Path) -> int | None:
    """Tokens that the model in `folder` has embeddings for; None where its config does not say."""
    config = _json(folder / "config.json") or {}
    size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return size if isinstance(size, int) else None


def positions_in(config: dict[str, Any]) -> int | None:
    """Of a model with such a config."""
    config = {**(config.get("text_config") or {}), **config}  # CLIP's, of its texts
    stated = [config.get(key) for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")]
    bound = next((value for value in stated if isinstance(value, int) and value > 0), None)
    if bound and config.get("model_type") in _ROBERTA_LIKE:
        bound -= (config.get("pad_token_id") or 1) + 1
    return bound


def _length(config: dict[str, Any], folder: Path) -> int:
    """The config's positions; less where the tokenizer, or the file of sentence-transformers, says so (MiniLM: 256 of 512)."""
    tokenizer = _json(folder / "tokenizer_config.json") or {}
    sentences = _json(folder / "sentence_bert_config.json") or {}
    limits = [positions_in(config), tokenizer.get("model_max_length"), sentences.get("max_seq_length")]
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and 1 < limit < _UNBOUNDED]
    return min(known, default=_DEFAULT_LENGTH)


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise Unsupported("is not JSON.", where=str(path), remedy="Fetch the model again.") from None
    return data if isinstance(data, dict) else None

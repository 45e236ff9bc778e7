"""The `model:` section."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, JsonValue, PositiveInt

from raybm.core.spec import Check, Spec

SCHEMES = ("hub", "file", "s3", "package", "registry", "scratch")


def check_reference(ref: str) -> str:
    scheme, colon, rest = ref.partition(":")
    if not colon or scheme not in SCHEMES or (not rest and scheme != "scratch"):
        raise ValueError(
            "should be hub:org/name@revision, file:path, s3://bucket/prefix, package:name, registry:name@alias-or-version, "
            "or scratch:model_type"
        )
    if scheme == "scratch" and not rest:
        raise ValueError("should name a transformers model type, such as scratch:llama")
    return ref


Reference = Annotated[str, AfterValidator(check_reference)]


class TokenizerSpec(Spec):
    """A tokenizer trained on the job's own text (the training split)."""

    train: Literal["wordpiece", "bpe", "unigram", "char"]
    """The algorithm; char needs no more than the characters there are."""
    vocab_size: PositiveInt = 8000
    """Tokens at most."""
    lowercase: bool = False
    """Fold the text to lower case first."""


class LoraSpec(Spec):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), trained instead of the weights and merged into them at the end."""

    rank: PositiveInt = 8
    """Of the two factors."""
    alpha: PositiveInt = 16
    """What the adapters add is scaled by alpha ÷ rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Before the adapters, in training."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Ends of the names of the layers that get adapters, such as [q_proj, v_proj]."""


class ModelSpec(Spec):
    """Which model the job starts from."""

    ref: Reference
    """hub:org/name@revision | file:path | s3://bucket/prefix | package:name | registry:name@alias-or-version | scratch:model_type"""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Longest sequence in tokens; longer ones are cut (classification) or split (language model text)."""
    config: dict[str, JsonValue] = {}
    """Fields of the transformers config, for `scratch:` models (hidden_size, num_hidden_layers, ...)."""
    tokenizer: TokenizerSpec | None = None
    """Train a tokenizer on the job's text, for `scratch:` models. Default: the one that comes with the model."""

    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of all dropout layers. Default: the model's own."""
    lora: LoraSpec | None = None
    """Train adapters only."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameter names that stay as they are, such as ["bert.embeddings.*", "*.layer.[0-3].*"]."""

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(
            ("lora", "ref"),
            lambda lora, ref: (
                ("a model from scratch has no weights for adapters to adapt.", "Drop `model.lora`.")
                if lora and ref.startswith("scratch:")
                else None
            ),
        ),
        Check(
            ("config", "ref"),
            lambda config, ref: (
                (f"{ref} brings its own config.", "Drop `model.config`, or start from `scratch:model_type`.")
                if config and not ref.startswith("scratch:")
                else None
            ),
        ),
        Check(
            ("tokenizer", "ref"),
            lambda tokenizer, ref: (
                ("a model from scratch needs a tokenizer.", "Add `tokenizer: {train: bpe, vocab_size: 8000}`.")
                if ref.startswith("scratch:") and tokenizer is None
                else ("a pretrained model's embeddings fit only its own tokenizer.", "Drop `model.tokenizer`.")
                if tokenizer is not None and not ref.startswith("scratch:")
                else None
            ),
        ),
    )

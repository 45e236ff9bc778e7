"""The `model:` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, JsonValue, PositiveFloat, PositiveInt

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


def check_adapter(ref: str) -> str:
    if check_reference(ref).partition(":")[0] not in ("hub", "file"):
        raise ValueError("should be hub:org/name@revision or file:path")
    return ref


Reference = Annotated[str, AfterValidator(check_reference)]
Side = Annotated[int, Field(ge=4, le=4096)]


class TokenizerSpec(Spec):
    """A tokenizer trained on the job's own text (the training split)."""

    train: Literal["wordpiece", "bpe", "unigram", "char"]
    """The algorithm; char needs no more than the characters there are."""
    vocab_size: PositiveInt = 8000
    """Tokens at most."""
    lowercase: bool = False
    """Fold the text to lower case first."""


class ImageSpec(Spec):
    """What a picture becomes before the model sees it."""

    size: Side | tuple[Side, Side] = 224
    """Pixels of both sides, or [height, width]; pictures are squeezed into it."""
    channels: Literal[1, 3] = 3
    """1: grey; 3: red, green, blue."""
    mean: tuple[float, ...] = (0.5,)
    """Taken off every value (from 0 to 1); one for all channels or one each."""
    std: tuple[PositiveFloat, ...] = (0.5,)
    """Values are divided by it then."""

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(
            ("channels", "mean", "std"),
            lambda channels, *given: (
                (f"there are {channels} channels.", "Give mean and std one number, or one a channel.")
                if any(len(numbers) not in (1, channels) for numbers in given)
                else None
            ),
        ),
    )


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
    quantize: Literal["nf4", "int8"] | None = None
    """Keep the weights that adapters are put on in 4 bit (QLoRA, Dettmers et al. 2023, arXiv:2305.14314) or 8 bit while training, below
    ZeRO stage 3; the adapters are merged into the weights as they were. Wants the extra `quantized`."""


class ModelInput(Spec):
    """What of a model decides what rows become: all that data are prepared by, so that a search over the rest prepares them once."""

    ref: Reference
    """hub:org/name@revision | file:path | s3://bucket/prefix | package:name | registry:name@alias-or-version | scratch:model_type"""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Longest sequence in tokens; longer ones are cut (classification) or split (language model text)."""
    tokenizer: TokenizerSpec | None = None
    """Train a tokenizer on the job's text, for `scratch:` models. Default: the one that comes with the model."""
    image: ImageSpec | None = None
    """What pictures become. Default: what the model's preprocessor_config.json says; a model from scratch needs it."""


class ModelSpec(ModelInput):
    """Which model the job starts from."""

    config: dict[str, JsonValue] = {}
    """Fields of the transformers config, for `scratch:` models (hidden_size, num_hidden_layers, ...)."""
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
                ("a pretrained model's embeddings fit only its own tokenizer.", "Drop `model.tokenizer`.")
                if tokenizer is not None and not ref.startswith("scratch:")
                else None
            ),
        ),
        Check(("config", "tokenizer"), lambda *values: _vocabulary(*values)),
    )


def _vocabulary(config: Mapping[str, Any], tokenizer: TokenizerSpec | None) -> tuple[str, str] | None:
    text = config.get("text_config")
    size = config.get("vocab_size", text.get("vocab_size") if isinstance(text, Mapping) else None)
    if tokenizer is None or size is None or (isinstance(size, int) and size >= tokenizer.vocab_size):
        return None
    what = f"vocab_size is {size!r}, and the tokenizer may have {tokenizer.vocab_size} tokens."
    return what, "Leave it out of `model.config`: the model gets as many as the tokenizer has."

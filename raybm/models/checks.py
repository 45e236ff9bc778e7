"""What can be known to be wrong about a model before anything is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raybm.core.errors import UserError
from raybm.models.signature import positions, positions_in
from raybm.models.spec import ModelInput, ModelSpec


def check(model: ModelSpec, folder: Path | None) -> None:
    """`folder`: of a model that is on this machine. Raises UserError for an architecture that is not there, a config that cannot be,
    and sequences longer than the model has positions for."""
    scheme, _, model_type = model.ref.partition(":")
    if scheme == "scratch":
        _check_length(model, _limit(model_type, model.config))
    else:
        check_pretrained(model, folder)


def check_pretrained(model: ModelInput, folder: Path | None) -> None:
    """Raises UserError for sequences longer than the model has positions for."""
    _check_length(model, positions(folder) if folder and folder.is_dir() else None)


def _check_length(model: ModelInput, limit: int | None) -> None:
    if limit is not None and model.max_length > limit:
        raise UserError(
            f"{model.max_length} is more than the {limit} tokens that the model takes.", where="model.max_length", remedy="Lower it."
        )


def _limit(model_type: str, given: Mapping[str, Any]) -> int | None:
    """Positions of a new model's config. Raises UserError."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from raybm.models import own

    own.register()
    known = sorted(CONFIG_MAPPING.keys())
    if model_type not in known:
        near = difflib.get_close_matches(model_type, known, n=1)
        remedy = f"Did you mean scratch:{near[0]}?" if near else "Take a model type of transformers, such as scratch:llama or scratch:bert."
        raise UserError(f"there is no architecture {model_type!r}.", where="model.ref", remedy=remedy)
    fields = AutoConfig.for_model(model_type).to_dict()
    unknown = [name for name in given if name not in fields]
    if unknown:
        near = difflib.get_close_matches(unknown[0], fields, n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else f"See transformers' documentation of {model_type}."
        raise UserError(f"{model_type} knows no {unknown[0]!r}.", where=f"model.config.{unknown[0]}", remedy=remedy)
    try:
        config = AutoConfig.for_model(model_type, **given)
    except (ValueError, TypeError) as error:  # transformers checks some fields against each other
        raise UserError(
            f"{str(error).rstrip('.')}.", where="model.config", remedy=f"See transformers' documentation of {model_type}."
        ) from error
    width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if isinstance(width, int) and isinstance(heads, int) and getattr(config, "head_dim", None) is None and width % heads:
        raise UserError(
            f"{width} cannot be dealt to {heads} heads.", where="model.config.hidden_size", remedy="Use a multiple of num_attention_heads."
        )
    return None if getattr(config, "rope_parameters", None) else positions_in(config.to_dict())

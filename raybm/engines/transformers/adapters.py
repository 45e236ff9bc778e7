"""Low-rank adapters on a loaded model, another one for each row of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from raybm.core.errors import NotFound, Unsupported
from raybm.models.references import resolve_adapter

BASE = "__base__"  # peft's name of no adapter
MORE = ("modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication")
"""In an adapter's config: what is more than low-rank layers beside the model's own, which rows could choose among."""
INITS = (True, False, "gaussian", "orthogonal", "eva")
"""Of `init_lora_weights`, those that leave the model's own weights as they are."""
MERGE = "Merge it into its model (peft's merge_and_unload), and serve that."


class Adapters:
    """What a batch's rows are computed through; without adapters nothing changes about the model."""

    def __init__(self, model: PreTrainedModel, refs: Mapping[str, str]) -> None:
        """`refs`: folders of adapters by name; their weights are loaded here. Raises NotFound, Unsupported."""
        self._inside = {name: f"raybm_{number}" for number, name in enumerate(refs)}  # a name may hold a dot, a module's may not
        self._rows: list[str] = []
        own = model.state_dict()
        for name, ref in refs.items():
            _load(model, own, resolve_adapter(ref), self._inside[name], f"engine.adapters.{name}")
        if refs:
            model.eval()  # what was put into it, too
            self._pass_names(model)
        for name in refs:
            self._try(model, name)

    def check(self, name: str | None) -> None:
        """Raises NotFound."""
        if name is not None and name not in self._inside:
            raise NotFound(f"this model has no adapter {name[:100]}.", remedy=f"There are: {', '.join(self._inside) or 'none'}.")

    def choose(self, names: Sequence[str | None]) -> None:
        """What each row of the next forward pass goes through."""
        self._rows = [BASE if name is None else self._inside[name] for name in names]

    def _pass_names(self, model: PreTrainedModel) -> None:
        from peft.tuners.lora import LoraLayer

        def add(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, kwargs | {"adapter_names": self._rows}

        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.register_forward_pre_hook(add, with_kwargs=True)

    def _try(self, model: PreTrainedModel, name: str) -> None:
        """Some layers have lost which row a token is of, as where experts are chosen token by token."""
        self.choose([name, None])
        ids = torch.zeros((2, 3), dtype=torch.long, device=model.device)
        more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        if "position_ids" in inspect.signature(model.forward).parameters:
            more["position_ids"] = torch.arange(3, device=model.device).expand(2, 3)
        try:
            with torch.inference_mode():
                model(input_ids=ids, **more)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            what = f"cannot be one of several in a {type(model).__name__}: {str(error)[:200]}"
            raise Unsupported(what, where=f"engine.adapters.{name}", remedy=MERGE) from error


def _load(model: PreTrainedModel, own: Mapping[str, torch.Tensor], folder: Path, name: str, where: str) -> None:
    """`own`: the model's weights before any adapter was put into it."""
    from peft import LoraConfig, PeftConfig, inject_adapter_in_model, set_peft_model_state_dict

    try:
        config = PeftConfig.from_pretrained(folder)
        weights = {key.removeprefix("base_model.model."): value for key, value in load_file(folder / "adapter_model.safetensors").items()}
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise Unsupported(f"cannot be read: {type(error).__name__}: {error}", where=where, remedy="Fetch it again.") from error
    if not isinstance(config, LoraConfig):
        raise Unsupported(f"is {config.peft_type.value}, no low-rank adapter.", where=where, remedy="Give one of LoRA.")
    variants = [each.name for each in fields(config) if each.metadata.get("is_lora_variant")]  # DoRA, KaSA and others
    more = [key for key in (*variants, *MORE) if getattr(config, key)] + ["bias"] * (config.bias != "none")
    more += ["init_lora_weights"] * (config.init_lora_weights not in INITS)
    low_rank = {key: value for key, value in weights.items() if ".lora_" in key}
    more += sorted(key for key in weights.keys() - low_rank.keys() if not _same(own.get(key.replace("base_layer.", "")), weights[key]))
    if more:
        what = f"is more than low-rank layers: {', '.join(more[:3])}."
        raise Unsupported(what, where=where, remedy=MERGE)
    try:
        inject_adapter_in_model(config, model, name)
        loaded = set_peft_model_state_dict(model, low_rank, name)
    except (ValueError, RuntimeError) as error:
        raise Unsupported(f"does not fit {type(model).__name__}: {str(error)[:300]}", where=where, remedy="Is it of this model?") from error
    wrong = [*loaded.unexpected_keys, *(key for key in loaded.missing_keys if name in key.split("."))]
    if wrong:
        what = f"does not fit {type(model).__name__}: {len(wrong)} weights are too many or too few, the first {wrong[0]}."
        raise Unsupported(what, where=where, remedy="Is it of this model?")


def _same(own: torch.Tensor | None, other: torch.Tensor) -> bool:
    """Also where one of them was rounded to the other's type."""
    if own is None or own.shape != other.shape:
        return False
    other = other.to(own.device)
    return bool(torch.equal(own, other.to(own.dtype)) or torch.equal(own.to(other.dtype), other))

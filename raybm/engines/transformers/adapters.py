"""Low-rank adapters on a loaded model, another one for each row of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedModel

from raybm.core.errors import Unsupported
from raybm.models.references import resolve_adapter

BASE = "__base__"  # peft's name of no adapter


class Adapters:
    """What a batch's rows are computed through; without adapters nothing changes about the model."""

    def __init__(self, model: PreTrainedModel, refs: Mapping[str, str]) -> None:
        """`refs`: folders of adapters by name; their weights are loaded here. Raises NotFound, Unsupported."""
        self._inside = {name: f"raybm_{number}" for number, name in enumerate(refs)}  # a name may hold a dot, a module's may not
        self._rows: list[str] = []
        for name, ref in refs.items():
            _load(model, resolve_adapter(ref), self._inside[name], f"engine.adapters.{name}")
        if refs:
            self._pass_names(model)

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


def _load(model: PreTrainedModel, folder: Path, name: str, where: str) -> None:
    from peft import LoraConfig, PeftConfig, inject_adapter_in_model, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(folder)
    if not isinstance(config, LoraConfig):
        raise Unsupported(f"is {config.peft_type.value}, no low-rank adapter.", where=where, remedy="Give one of LoRA.")
    more = [key for key in ("use_dora", "alora_invocation_tokens", "modules_to_save", "trainable_token_indices") if getattr(config, key)]
    if config.bias != "none":
        more.append("bias")
    if more:
        what = f"changes more than low-rank layers can: {', '.join(more)}."
        raise Unsupported(what, where=where, remedy="Merge it into its model (peft's merge_and_unload), and serve that.")
    weights = {key.removeprefix("base_model.model."): value for key, value in load_file(folder / "adapter_model.safetensors").items()}
    try:
        inject_adapter_in_model(config, model, name)
        loaded = set_peft_model_state_dict(model, weights, name)
    except (ValueError, RuntimeError) as error:
        raise Unsupported(f"does not fit {type(model).__name__}: {str(error)[:300]}", where=where, remedy="Is it of this model?") from error
    wrong = [*loaded.unexpected_keys, *(key for key in loaded.missing_keys if f".{name}." in key)]
    if wrong:
        what = f"does not fit {type(model).__name__}: {len(wrong)} weights are too many or too few, the first {wrong[0]}."
        raise Unsupported(what, where=where, remedy="Is it of this model?")

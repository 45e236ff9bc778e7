"""What the spec changes about a loaded model: dropout, frozen weights, low-rank adapters, layers that are computed again."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from fnmatch import fnmatchcase
from types import MethodType
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from raybm.core.errors import UserError
from raybm.models.spec import LoraSpec, ModelSpec

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # peft imports it, and it misses a kernel of the hub's each time


def adapt(model: Any, spec: ModelSpec) -> None:
    """In place. With adapters, only they and a head that is not part of the pretrained model are trained. A batch norm whose weights are
    all frozen keeps its running statistics. Raises UserError for names that the model does not have."""
    if spec.dropout is not None:
        _set_dropout(model, spec.dropout)
    if spec.lora is not None:
        tuner(model, spec.lora)
    for pattern in spec.freeze:
        frozen = [parameter for name, parameter in model.named_parameters() if fnmatchcase(name, pattern)]
        if not frozen:
            examples = ", ".join(name for name, _ in list(model.named_parameters())[:3])
            raise UserError(
                f"no parameter is called {pattern}.", where="model.freeze", remedy=f"The first are {examples}; `*` stands for anything."
            )
        for parameter in frozen:
            parameter.requires_grad = False
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("nothing is left to train.", where="model.freeze", remedy="Freeze less.")
    for module in model.modules():
        weights = list(module.parameters(recurse=False)) if isinstance(module, _BatchNorm) else []
        if weights and not any(weight.requires_grad for weight in weights):
            _keep_statistics(module)


def recompute(model: Any) -> None:
    """Of a layer only its inputs are kept for the backward pass. Raises UserError for a model that cannot do that."""
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        what = f"{type(model).__name__} cannot compute its layers again."
        raise UserError(what, where="train.gradient_checkpointing", remedy="Set it to false.") from error


def tuner(model: Any, spec: LoraSpec) -> Any:
    """Puts adapters into the model and returns peft's handle on them, whose `merge_and_unload` gives the plain model with the
    adapters in its weights."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    vocabulary = model.get_output_embeddings()
    new = [head for head in heads(model).values() if all(module is not vocabulary for module in head.modules())]
    inside = {id(module) for head in new for module in head.modules()}
    names = [
        name for name, module in model.named_modules() if _takes_adapters(module) and id(module) not in inside and module is not vocabulary
    ]
    wanted = ("",) if spec.targets == "all-linear" else tuple(spec.targets)
    chosen = [name for name in names if name.endswith(wanted)]
    known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names})) or "none"
    if not chosen:
        called = f" is called {', '.join(spec.targets)}" if any(wanted) else " can be adapted"
        raise UserError(f"no layer{called}.", where="model.lora.targets", remedy=f"The linear layers are: {known}.")
    for module in model.modules():  # bitsandbytes would pack 4-bit weights for a CPU's inference at the first evaluation, and train no more
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=chosen)
    try:
        handle = LoraModel(model, config, "default")
    except ValueError as error:
        what = f"peft puts no adapters there: {error}"
        raise UserError(what, where="model.lora.targets", remedy=f"Name some of the linear layers: {known}.") from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name
    for head in new:
        head.requires_grad_(True)
    return handle


def quantization(spec: LoraSpec | None, skeleton: Callable[[], Any]) -> dict[str, Any]:
    """What `from_pretrained` is to be told to load the weights quantised; nothing where they are not to be. `skeleton()`: such a model
    without weights, whose heads stay as they are. Raises UserError."""
    if spec is None or spec.quantize is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "bitsandbytes is not installed.", where="model.lora.quantize", remedy="Run: pip install 'raybm[quantized]', or drop it."
        )
    import torch
    from transformers import BitsAndBytesConfig

    with torch.device("meta"):
        model = skeleton()
    vocabulary = model.get_output_embeddings()
    whole = [*heads(model), *(name for name, module in model.base_model.named_modules() if module is vocabulary)]
    if spec.quantize == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=whole)}


def in_few_bits(model: nn.Module) -> int:
    """How many weights `quantization` lets be loaded so, of a model with adapters: of the linear layers below the heads."""
    found = {}
    for part in model.modules():
        for module in part.base_model.modules() if isinstance(part, PreTrainedModel) else ():
            if isinstance(module, nn.Linear) and module is not part.get_output_embeddings() and not module.weight.requires_grad:
                found[id(module.weight)] = module.weight.numel()
    return sum(found.values())


def heads(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Heads, by name: what stands beside the base and has weights. Of a model that is its own base the linear layers on top, where it is
    made to tell labels (CLIPForImageClassification), else nothing (a bare encoder, T5, CLIP)."""
    base, children = model.base_model, dict(model.named_children())
    if base is not model:
        return {name: child for name, child in children.items() if child is not base and next(child.parameters(), None) is not None}
    tells = type(model).__name__.endswith(("Classification", "Answering"))
    return {name: child for name, child in children.items() if tells and isinstance(child, nn.Linear)}


def merged(model: Any, state: dict[str, Any], spec: LoraSpec) -> tuple[Any, dict[str, Any]]:
    """The plain `model` with the trained adapters of `state` in its weights, and its weights. Quantised ones are passed over: the model's
    own take their place."""
    handle = tuner(model, spec)
    own = model.state_dict()
    trained = {name: value for name, value in state.items() if name in own and value.is_floating_point() and value.shape == own[name].shape}
    model.load_state_dict(trained, strict=spec.quantize is None)
    plain = handle.merge_and_unload()
    return plain, plain.state_dict()


def _takes_adapters(module: nn.Module) -> bool:
    """Linear layers, and plain convolutions: with groups peft cannot merge what it adds, and it forgets dilation."""
    if isinstance(module, nn.Conv1d):
        return bool(module.groups == 1 and module.dilation == (1,))
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _keep_statistics(module: Any) -> None:
    """It stays in evaluation, whatever module `train` is called on."""
    module.eval()
    module.train = MethodType(_as_it_is, module)


def _as_it_is(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def _set_dropout(model: Any, share: float) -> None:
    """Dropout layers, and the shares that other modules keep as a number (attention, LSTMs); not LayerDrop, which leaves out layers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        for name, value in vars(module).items():
            if name.endswith(("dropout", "dropout_prob")) and isinstance(value, float):
                setattr(module, name, share)

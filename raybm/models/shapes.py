"""The shape of a model that is not loaded: from its weights' headers, its config, or a model built on torch's meta device."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybm.core.errors import NotFound
from raybm.models import packages
from raybm.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from raybm.core.storage import Storage

HEADER_LIMIT = 100_000_000  # bytes; as in safetensors' own reader
SMALL = 100_000  # numbers in a tensor up to which ZeRO-3 leaves it whole on every rank (stage3_param_persistence_threshold)


@dataclass(frozen=True)
class Shape:
    """Of a model, without its weights. Those that may be None are so where the config does not say."""

    parameters: int
    """Shared ones once."""
    largest: int = 0
    """Parameters of the largest single module (an embedding, a linear layer), which ZeRO-3 gathers at once."""
    small: int = 0
    """Parameters in tensors of up to SMALL numbers."""
    width: int | None = None
    """Hidden size."""
    layers: int | None = None
    """Of an encoder and a decoder together."""
    vocabulary: int | None = None
    frozen: int = 0
    """Parameters that do not learn."""
    quantized: int = 0
    """Of these, such as are kept in fewer bits (`model.lora.quantize`)."""

    @property
    def trainable(self) -> int:
        return self.parameters - self.frozen


def shape(model: ModelSpec, storage: Storage) -> Shape | None:
    """From the weights' headers; for `scratch:` counted on the meta device. None for a model that is not on this machine yet.
    Raises NotFound."""
    scheme, _, rest = model.ref.partition(":")
    if scheme == "scratch":
        return _scratch(rest, model)
    found = place(model, storage)
    if found is None:
        return None
    return _gguf(found) if found.suffix == ".gguf" else _folder(found)


def place(model: ModelSpec, storage: Storage) -> Path | None:
    """The folder (or .gguf file) of a model that is on this machine, else None. Downloads and converts nothing. Raises NotFound."""
    scheme, _, rest = model.ref.partition(":")
    found: Path | None = None
    if scheme == "package":
        found = packages.find(rest)
    elif scheme == "file":
        found = Path(rest).expanduser()
    elif scheme == "registry":
        from raybm.core.registry import Registry

        name, _, which = rest.partition("@")
        found = storage.local(f"registry/{name}/versions/{Registry(storage).get(name, which).number}")
    elif scheme == "hub":
        found = _cached(rest)
    if found is not None and not found.exists():
        raise NotFound("there is no such model.", where=model.ref, remedy="Check the path.")
    return found


def config_of(model: ModelSpec, storage: Storage) -> dict[str, Any] | None:
    """The transformers config that the model would be built from; None where it is not on this machine. Raises NotFound."""
    scheme, _, rest = model.ref.partition(":")
    if scheme == "scratch":
        return {"model_type": rest, **_vocabulary(model), **model.config}
    found = place(model, storage)
    if found is None:
        return None
    if found.suffix == ".gguf":
        from transformers import AutoConfig

        return dict(AutoConfig.from_pretrained(found.parent, gguf_file=found.name).to_dict())
    config: dict[str, Any] = json.loads((found / "config.json").read_text(encoding="utf-8"))
    return config


def counted(model: torch.nn.Module, config: Mapping[str, Any]) -> Shape:
    """Of a built model, best on the meta device: nothing but the tensors' shapes is looked at."""
    tensors = {id(parameter): parameter.numel() for parameter in model.parameters()}
    frozen = {id(parameter): parameter.numel() for parameter in model.parameters() if not parameter.requires_grad}
    modules = (sum(parameter.numel() for parameter in module.parameters(recurse=False)) for module in model.modules())
    return replace(_shape(tensors.values(), modules, config), frozen=sum(frozen.values()))


def _shape(tensors: Iterable[int], modules: Iterable[int], config: Mapping[str, Any]) -> Shape:
    """Depth and width go by the names that most configs of transformers use."""
    sizes = list(tensors)

    def value(*names: str) -> int | None:
        return next((int(config[name]) for name in names if isinstance(config.get(name), int)), None)

    layers = value("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers")
    decoder = value("num_decoder_layers", "decoder_layers") if config.get("is_encoder_decoder") else None
    return Shape(
        sum(sizes),
        max(modules, default=0),
        sum(size for size in sizes if size <= SMALL),
        value("hidden_size", "n_embd", "d_model", "dim"),
        layers + decoder if layers is not None and decoder is not None else layers,
        value("vocab_size"),
    )


def _named(sizes: Mapping[str, int], config: Mapping[str, Any]) -> Shape:
    """From tensors by name: those of one module (weight and bias) differ after the last dot."""
    modules: dict[str, int] = defaultdict(int)
    for name, size in sizes.items():
        modules[name.rpartition(".")[0]] += size
    return _shape(sizes.values(), modules.values(), config)


def _folder(folder: Path) -> Shape:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return _named({name: size for file in folder.glob("*.safetensors") for name, size in safetensors_sizes(file).items()}, config)


def safetensors_sizes(file: Path) -> dict[str, int]:
    """Numbers in each of the file's floating-point tensors, from its header (https://huggingface.co/docs/safetensors, "Format")."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > HEADER_LIMIT:
            raise NotFound("this is no safetensors file.", where=str(file), remedy="Download the model again.")
        header = json.loads(stream.read(length))
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    return {name: math.prod(tensor["shape"]) for name, tensor in tensors.items() if tensor["dtype"].startswith(("F", "BF"))}


def _scratch(model_type: str, model: ModelSpec) -> Shape:
    import torch
    from transformers import AutoConfig, AutoModel

    from raybm.models import own

    own.register()
    config = AutoConfig.for_model(model_type, **_vocabulary(model) | dict(model.config))
    with torch.device("meta"):
        return counted(AutoModel.from_config(config), config.to_dict())


def _vocabulary(model: ModelSpec) -> dict[str, int]:
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}  # as the tokenizers that raybm trains number them
    return {"vocab_size": model.tokenizer.vocab_size, **special} if model.tokenizer else {}


def _gguf(file: Path) -> Shape:
    from gguf import GGUFReader

    reader = GGUFReader(file)
    fields = {name.partition(".")[2]: field for name, field in reader.fields.items()}
    names = {"hidden_size": "embedding_length", "num_hidden_layers": "block_count"}
    config = {ours: int(fields[theirs].contents()) for ours, theirs in names.items() if theirs in fields}
    if "ggml.tokens" in fields:
        config["vocab_size"] = len(fields["ggml.tokens"].data)
    return _named({tensor.name: int(tensor.n_elements) for tensor in reader.tensors}, config)


def _cached(rest: str) -> Path | None:
    """Where the hub's client keeps the model, if it has it."""
    from huggingface_hub import errors, snapshot_download

    name, _, revision = rest.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None

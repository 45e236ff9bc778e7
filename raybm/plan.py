"""What a job will need, before it runs: bytes of memory a rank and of disk, by arithmetic over the spec and the model's shape.

Nothing is loaded or downloaded. Sources: ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054, §3 and §5) for the states of the model;
Korthikanti et al. 2022 (arXiv:2205.05198, eq. 1) for activations.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybm.core.errors import NotFound
from raybm.core.storage import Storage, open_storage
from raybm.data.files import expand
from raybm.models import packages
from raybm.models.spec import ModelSpec
from raybm.spec.job import JobSpec
from raybm.spec.train import BUCKET, TrainSpec

PROCESS_BYTES = 700_000_000  # of a rank before it has a model: Python, torch, transformers, DeepSpeed (resident; a rough guess)
HEADER_LIMIT = 100_000_000  # bytes; as in safetensors' own reader
ADAM = 12  # bytes a parameter: fp32 copy, mean and square of the gradients (ZeRO §3.1, K = 12)
CHECKPOINTS = 3  # the last, the best and the one being written


@dataclass(frozen=True)
class Shape:
    """Of a model, without its weights. The last three are None where the config does not say."""

    parameters: int
    width: int | None = None
    """Hidden size."""
    layers: int | None = None
    vocabulary: int | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank at the peak of a step."""

    weights: int
    gradients: int
    optimizer: int
    buckets: int
    """DeepSpeed's buffers for reducing and gathering."""
    activations: int | None
    """Rough, and an upper bound: every sequence at its longest, no checkpointing. None where the shape is not known."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.buckets + (self.activations or 0)


@dataclass(frozen=True)
class Disk:
    """Bytes that the job writes into its storage. `data` is rough: cleaned and encoded rows, each about as large as the sources."""

    sources: int
    data: int
    checkpoint: int
    """One of them."""
    model: int
    published: int

    @property
    def total(self) -> int:
        return self.data + CHECKPOINTS * self.checkpoint + self.model + self.published


@dataclass(frozen=True)
class Plan:
    shape: Shape | None
    """None: not known before the model has been downloaded."""
    memory: Memory | None
    disk: Disk | None


def plan(job: JobSpec, storage: Storage) -> Plan:
    """Raises NotFound for files, packages and versions that are not there, StorageError."""
    found = shape(job.model, storage)
    if found is None:
        return Plan(None, None, None)
    read = sum(file.bytes for source in job.data.sources for file in expand(source.path))
    each = bytes_of(job.train)
    checkpoint = found.parameters * (each + (ADAM if job.train.zero.stage else ADAM - 4))
    model = found.parameters * each
    disk = Disk(read, 2 * read, checkpoint, model, model if job.publish else 0)
    return Plan(found, memory(found, job), disk)


def bytes_of(train: TrainSpec) -> int:
    """Of one weight, or one gradient."""
    return 2 if train.precision == "bf16" else 4


def memory(shape: Shape, job: JobSpec) -> Memory:
    """ZeRO §5: stage 1 shards the optimiser's states over the ranks, stage 2 the gradients too, stage 3 the weights too. Without
    ZeRO in fp32 the weights are the optimiser's own copy, which saves 4 bytes a parameter."""
    count, stage, ranks, each = shape.parameters, job.train.zero.stage, job.resources.workers, bytes_of(job.train)
    bucket = min(BUCKET["cuda" if job.resources.gpus_per_worker else "cpu"], count) * each
    return Memory(
        weights=count * each // (ranks if stage == 3 else 1),
        gradients=count * each // (ranks if stage >= 2 else 1),
        optimizer=count * ADAM // ranks if stage else count * (ADAM - 4),
        buckets=2 * bucket if stage else bucket,
        activations=_activations(shape, job),
    )


def _activations(shape: Shape, job: JobSpec) -> int | None:
    """34 bytes a token, hidden unit and layer in 16 bit, twice that in 32 (Korthikanti, eq. 1, without its attention matrix, which
    fused attention does not keep); for a language model the logits and their gradient, in fp32."""
    if shape.width is None or shape.layers is None:
        return None
    tokens = (job.train.micro_batch or job.train.global_batch // job.resources.workers) * job.model.max_length
    body = tokens * shape.width * shape.layers * 34 * bytes_of(job.train) // 2
    return body + (2 * 4 * tokens * (shape.vocabulary or 0) if job.task.kind == "causal_lm" else 0)


# ---- the shape of a model that is not loaded


def shape(model: ModelSpec, storage: Storage) -> Shape | None:
    """From the weights' headers or the config. None for a model that is not on this machine yet. Raises NotFound."""
    scheme, _, rest = model.ref.partition(":")
    if scheme == "scratch":
        return _scratch(rest, model)
    if scheme == "package":
        folder: Path | None = packages.find(rest)
    elif scheme == "file":
        folder = Path(rest).expanduser()
    elif scheme == "registry":
        from raybm.core.registry import Registry

        name, _, which = rest.partition("@")
        folder = storage.local(f"registry/{name}/versions/{Registry(storage).get(name, which).number}")
    else:
        folder = _cached(rest) if scheme == "hub" else None
    if folder is None:
        return None
    if not folder.exists():
        raise NotFound("there is no such model.", where=model.ref, remedy="Check the path.")
    return _gguf(folder) if folder.suffix == ".gguf" else _folder(folder)


def _folder(folder: Path) -> Shape:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return _shaped(sum(safetensors_parameters(file) for file in folder.glob("*.safetensors")), config)


def safetensors_parameters(file: Path) -> int:
    """Numbers in the file's floating-point tensors, from its header (https://huggingface.co/docs/safetensors, "Format")."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > HEADER_LIMIT:
            raise NotFound("this is no safetensors file.", where=str(file), remedy="Download the model again.")
        header = json.loads(stream.read(length))
    tensors = (value for name, value in header.items() if name != "__metadata__")
    return sum(math.prod(tensor["shape"]) for tensor in tensors if tensor["dtype"].startswith(("F", "BF")))


def _shaped(parameters: int, config: Mapping[str, Any]) -> Shape:
    """By the names that most configs of transformers use."""

    def value(*names: str) -> int | None:
        return next((int(config[name]) for name in names if config.get(name) is not None), None)

    return Shape(
        parameters,
        value("hidden_size", "n_embd", "d_model", "dim"),
        value("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
        value("vocab_size"),
    )


def _scratch(model_type: str, model: ModelSpec) -> Shape:
    """Built on torch's meta device: shapes without memory."""
    import torch
    from transformers import AutoConfig, AutoModel

    vocabulary = {"vocab_size": model.tokenizer.vocab_size} if model.tokenizer else {}
    config = AutoConfig.for_model(model_type, **vocabulary | dict(model.config))
    with torch.device("meta"):
        built = AutoModel.from_config(config)
    return _shaped(sum(parameter.numel() for parameter in built.parameters()), config.to_dict())


def _gguf(file: Path) -> Shape:
    from gguf import GGUFReader

    reader = GGUFReader(file)
    fields = {name.partition(".")[2]: field for name, field in reader.fields.items()}
    parameters = sum(int(tensor.n_elements) for tensor in reader.tensors)
    names = {"hidden_size": "embedding_length", "num_hidden_layers": "block_count"}
    config = {ours: int(fields[theirs].contents()) for ours, theirs in names.items() if theirs in fields}
    return _shaped(parameters, config | {"vocab_size": len(fields["ggml.tokens"].data)} if "ggml.tokens" in fields else config)


def _cached(rest: str) -> Path | None:
    """Where the hub's client keeps the model, if it has it."""
    from huggingface_hub import errors, snapshot_download

    name, _, revision = rest.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None


# ---- in words


def lines(job: JobSpec) -> list[str]:
    """The plan, for a person. Raises what `plan` raises."""
    storage = open_storage(job.storage)
    made = plan(job, storage)
    if made.shape is None or made.memory is None or made.disk is None:
        return [f"{job.model.ref} is not on this machine yet: memory and disk are known once it is."]
    use, disk = made.memory, made.disk
    parts = {"weights": use.weights, "gradients": use.gradients, "optimiser": use.optimizer, "buckets": use.buckets}
    said = ", ".join(f"{name} {size(count)}" for name, count in parts.items())
    rows = job.train.micro_batch or job.train.global_batch // job.resources.workers
    activations = f", activations up to {size(use.activations)} ({rows} rows of {job.model.max_length} tokens)" if use.activations else ""
    folder = storage.local()
    free = f", {size(shutil.disk_usage(_existing(folder)).free)} free" if folder else ""
    kept = f"{CHECKPOINTS} checkpoints (last, best, next) of {size(disk.checkpoint)}"
    published = f", published copy {size(disk.published)}" if disk.published else ""
    return [
        f"model   {_scaled(made.shape.parameters, ('', 'thousand', 'million', 'billion', 'trillion'))} parameters ({job.model.ref})",
        f"memory  about {size(use.total + PROCESS_BYTES)} on each of {job.resources.workers} ranks: {said}{activations}, "
        f"the process itself {size(PROCESS_BYTES)}",
        f"disk    about {size(disk.total)} in {storage.uri}: rows {size(disk.data)} (from {size(disk.sources)}), {kept}, "
        f"model {size(disk.model)}{published}{free}",
    ]


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def size(count: float) -> str:
    """1234567 → 1.2 MB."""
    return _scaled(count, ("bytes", "kB", "MB", "GB", "TB"))


def _scaled(count: float, units: tuple[str, ...]) -> str:
    power = min(int(math.log10(max(count, 1)) // 3), len(units) - 1)
    value = count / 1000**power
    return (f"{value:.0f} {units[power]}" if power == 0 or value >= 100 else f"{value:.1f} {units[power]}").rstrip()

"""A tiny classification job for ranks without Ray: its rows, its model, and a plain DDP loop to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybm.core.artifact import Artifact
from raybm.core.storage import open_storage
from raybm.spec.train import TrainSpec

LABELS = ("a", "b", "c")
CONFIG = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}


def prepared(folder: Path, rows: int = 70, validation: int = 13) -> Artifact:
    """Encoded rows whose label is decided by their first token."""
    random = np.random.default_rng(0)
    for split, count in (("train", rows), ("validation", validation)):
        ids = [random.integers(6, 60, size=random.integers(3, 12)).tolist() for _ in range(count)]
        table = pa.table(
            {"input_ids": pa.array(ids, pa.list_(pa.int32())), "labels": pa.array([[row[0] % 3] for row in ids], pa.list_(pa.int32()))}
        )
        (folder / "encoded" / split).mkdir(parents=True)
        pq.write_table(table, folder / "encoded" / split / "0.parquet")
    return Artifact(open_storage(str(folder)), "prepare", f"test-{folder.name}-{abs(hash(str(folder)))}")


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(64)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w1")), pad_token="w0", unk_token="w1")


def model(seed: int = 3) -> Any:
    import torch

    from raybm.tasks import TextClassification

    torch.manual_seed(seed)
    return (
        TextClassification()
        .build()
        .model(None, CONFIG | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}, LABELS, tokenizer())
    )


def train(prepare: Artifact, out: str, spec: dict[str, Any]) -> tuple[list[float], dict[str, Any]]:
    """The product's loop on this rank: losses by step, and the summary."""
    losses, summary, _ = _train(prepare, out, spec, model())
    return losses, summary


def looked_at(prepare: Artifact, out: str, spec: dict[str, Any]) -> tuple[list[float], dict[str, Any], list[dict[str, Any]]]:
    """The same on a device of a GFLOP/s; and its `profile` and `train` events."""
    events: list[dict[str, Any]] = []
    losses, summary, _ = _train(prepare, out, spec, model(), 1e9, events)
    return losses, summary, events


def paused(prepare: Artifact, out: str, spec: dict[str, Any], until: int) -> dict[str, Any]:
    """Trains until there have been so many validations; the summary."""
    return _train(prepare, out, spec, model(), until=until)[1]


def _train(
    prepare: Artifact,
    out: str,
    spec: dict[str, Any],
    start: Any,
    peak: float | None = None,
    events: list[dict[str, Any]] | None = None,
    until: int | None = None,
) -> tuple[list[float], dict[str, Any], Any]:
    from raybm.core import cache
    from raybm.tasks import TextClassification
    from raybm.training import batches, loop

    cache.ROOT = f"{out}-cache"  # not the user's
    losses: dict[int, float] = {}

    def emit(kind: str, **fields: Any) -> None:
        if kind == "train":
            losses[fields["step"]] = fields["loss"]
        if events is not None:
            events.append({"kind": kind, **fields})

    splits = {split: batches.open_rows(prepare, split) for split in ("train", "validation")}
    given = TrainSpec.parse(spec)
    engine = loop.initialize(start, given)
    summary = loop.train(engine, TextClassification().build(), tokenizer(), splits, given, 17, open_storage(out), emit, peak, until)
    return [losses[step] for step in sorted(losses)], summary, engine


def weights(prepare: Artifact, out: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Trains; the last validation and the sum of the exported weights' sizes (0 on other ranks)."""
    from raybm.training import loop

    _, summary, engine = _train(prepare, out, spec, model())
    state = loop.export(engine) or {}
    return {"validation": summary["validation"], "sum": sum(float(weight.double().abs().sum()) for weight in state.values())}


def drifting(prepare: Artifact, out: str, spec: dict[str, Any]) -> list[float]:
    """Trains a model with a batch norm on this rank's part of the rows; its running mean at the end."""
    import torch

    start = model()
    norm = torch.nn.BatchNorm1d(start.config.hidden_size)
    start.bert.pooler.activation = torch.nn.Sequential(norm, start.bert.pooler.activation)
    _train(prepare, out, spec, start)
    mean: list[float] = norm.running_mean.tolist()  # type: ignore[union-attr]
    return mean


def without_gradient(prepare: Artifact, out: str, spec: dict[str, Any]) -> str:
    """What the loop says of a model whose loss is a number and whose gradients are none."""
    import torch

    from raybm.core.errors import UserError

    start = model()
    first = next(start.parameters())
    first.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
    try:
        _train(prepare, out, spec, start)
    except UserError as error:
        return str(error)
    return ""


def failure(prepare: Artifact, out: str, spec: dict[str, Any]) -> str:
    """What the loop says where it cannot go on."""
    from raybm.core.errors import UserError

    try:
        train(prepare, out, spec)
    except UserError as error:
        return str(error)
    return ""


def packing(config: dict[str, Any], spec: dict[str, Any]) -> str:
    """What a language model in its engine says to packed rows."""
    import torch
    import torch.distributed as dist

    from raybm.core.errors import UserError
    from raybm.tasks import CausalLm
    from raybm.training import loop, zero

    given, task = TrainSpec.parse(spec), CausalLm().build()
    with zero.sharded_from_the_start(given, dist.get_world_size(), "cpu"):
        start = task.model(None, config, (), tokenizer())
    try:
        task.check(loop.initialize(start, given), lambda name: iter([(np.array([0, 4]), np.array([0, 1, 0, 1]))]), torch.device("cpu"))
    except UserError as error:
        return str(error)
    return ""


def adapters(prepare: Artifact, out: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Trains adapters; the logits of a row with them, and after they were merged into plain weights."""

    from raybm.models.adapters import adapt, merged
    from raybm.models.spec import ModelSpec
    from raybm.training import loop

    given = ModelSpec.parse({"ref": "file:x", "lora": {"rank": 2, "alpha": 4}})
    assert given.lora is not None
    start = model()
    plain_names = sorted(start.state_dict())
    adapt(start, given)
    trained = sum(p.numel() for p in start.parameters() if p.requires_grad)
    losses, _, engine = _train(prepare, out, spec, start)
    state = loop.export(engine)
    adapted = _logits(engine)
    if state is None:
        return {}
    plain, _ = merged(model(), state, given.lora)
    after = _logits(plain)
    return {
        "trained": trained,
        "parameters": sum(p.numel() for p in plain.parameters()),
        "losses": losses,
        "adapted": adapted,
        "merged": after,
        "names": sorted(plain.state_dict()),
        "plain_names": plain_names,
    }


def _logits(model: Any) -> list[float]:
    """Of one row."""
    import torch

    model.eval()
    with torch.no_grad():
        logits: list[float] = model(input_ids=torch.tensor([[7, 8, 9]])).logits[0].tolist()
    return logits


def quantised(prepare: Artifact, out: str, spec: dict[str, Any], kind: str, until: int | None = None) -> dict[str, Any]:
    """Trains adapters on a saved model whose weights are loaded quantised; logits of a row with them, again once they were loaded from
    the last checkpoint, and once they are merged into the weights as they were."""
    import torch
    import torch.distributed as dist

    from raybm.models.adapters import adapt, merged, quantization
    from raybm.models.spec import ModelSpec
    from raybm.tasks import TextClassification
    from raybm.training import checkpoint, loop

    given = ModelSpec.parse({"ref": "file:x", "lora": {"rank": 2, "alpha": 4, "quantize": kind}})
    assert given.lora is not None
    folder, task = Path(out).parent / "saved", TextClassification().build()
    wide = CONFIG | {"hidden_size": 64, "intermediate_size": 128, "hidden_dropout_prob": 0.0}  # 4-bit weights come in blocks of 64
    if dist.get_rank() == 0 and not folder.exists():
        task.model(None, wide, LABELS, tokenizer()).save_pretrained(folder)
    dist.barrier()
    torch.manual_seed(3)
    start = task.model(folder, quantization(given.lora, lambda: task.model(None, wide, LABELS, tokenizer())), LABELS, tokenizer())
    adapt(start, given)
    held = {name: value.dtype for name, value in start.named_parameters()}
    losses, _, engine = _train(prepare, out, spec, start, 1e9, until=until)  # which looks at a forward pass before the first step
    state = loop.export(engine)
    adapted, storage = _logits(engine), open_storage(out)
    checkpoint.load(engine, storage, checkpoint.commits(storage)[-1])
    loaded = _logits(engine)
    if state is None:
        return {}
    moved = [float(value.abs().sum()) for name, value in state.items() if "lora_B" in name]  # they start at 0
    plain, weights = merged(task.model(folder, {}, LABELS, tokenizer()), state, given.lora)
    after = _logits(plain)
    return {
        "moved": moved,
        "quantised": sum(not dtype.is_floating_point for dtype in held.values()),
        "losses": losses,
        "adapted": adapted,
        "loaded": loaded,
        "merged": after,
        "kinds": {str(value.dtype) for value in weights.values()},
        "same_names": sorted(plain.state_dict()) == sorted(model().state_dict()),
    }


def bytes_while_building() -> tuple[int, int]:
    """The most that a rank had allocated of a model of twenty layers while it was built for ZeRO stage 3 (looked at after each linear
    layer), and the size of the whole. What is allocated once, with the first model, is there before, by a small one."""
    import torch
    import torch.distributed as dist

    from raybm.tasks import TextClassification
    from raybm.training import zero

    size = {"hidden_size": 512, "num_hidden_layers": 20, "num_attention_heads": 8, "intermediate_size": 2048, "max_position_embeddings": 32}
    with zero.sharded_from_the_start(TrainSpec.parse({"zero": {"stage": 3}}), dist.get_world_size(), "cpu"):
        TextClassification().build().model(None, CONFIG, LABELS, tokenizer())
        made, before, peak = torch.nn.Linear.__init__, _allocated(), [0]

        def look(*args: Any, **settings: Any) -> None:
            made(*args, **settings)
            peak[0] = max(peak[0], _allocated())

        torch.nn.Linear.__init__ = look  # type: ignore[method-assign]
        try:
            built = TextClassification().build().model(None, CONFIG | size, LABELS, tokenizer())
        finally:
            torch.nn.Linear.__init__ = made  # type: ignore[method-assign]
    return peak[0] - before, sum(p.ds_numel for p in built.parameters()) * 4


def _allocated() -> int:
    """Bytes that are in use of what malloc gave (glibc's mallinfo2): resident memory would count what was freed and kept."""
    import ctypes

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    info = type("Mallinfo2", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in names.split()]})
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = info
    found: Any = ask()
    return int(found.uordblks + found.hblkhd)


def plain_ddp(prepare: Artifact, spec: dict[str, Any]) -> list[float]:
    """The same mathematics in torch's DistributedDataParallel, nothing of ours but the order of the rows."""
    import torch
    import torch.distributed as dist

    from raybm.core import cache
    from raybm.tasks import TextClassification
    from raybm.training.batches import Schedule, open_rows

    cache.ROOT = f"{prepare.storage.uri}-cache"
    given = TrainSpec.parse(spec)
    rank, world = dist.get_rank(), dist.get_world_size()
    rows, task, vocabulary = open_rows(prepare, "train"), TextClassification().build(), tokenizer()
    replica = torch.nn.parallel.DistributedDataParallel(model())
    decayed = [p for p in replica.parameters() if p.ndim > 1]
    spared = [p for p in replica.parameters() if p.ndim <= 1]
    adam = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": given.weight_decay}, {"params": spared, "weight_decay": 0.0}], lr=given.lr, betas=given.betas
    )
    schedule = Schedule(rows.lengths, given.global_batch, world, 17, given.micro_batch)
    total = schedule.total_steps(given.epochs, given.max_steps)
    warm = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / total)
    losses = []
    for step in range(total):
        parts = [task.collate(rows.take(part), vocabulary) for part in schedule.step(step, rank)]
        count = torch.tensor(sum(int(task.units(part)) for part in parts))
        dist.all_reduce(count)
        summed = torch.zeros(())
        for part in parts:
            logits = replica(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
            loss = torch.nn.functional.cross_entropy(logits, part["labels"], reduction="sum", ignore_index=-100)
            (loss * world / count).backward()
            summed += loss.detach()
        torch.nn.utils.clip_grad_norm_(replica.parameters(), given.clip_norm or 1e9)
        adam.step()
        adam.zero_grad()
        warm.step()
        dist.all_reduce(summed)
        losses.append(float(summed / count))
    return losses

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
    from raybm.tasks import TextClassification
    from raybm.training import batches, loop

    batches.CACHE = f"{out}-cache"  # not the user's
    losses: dict[int, float] = {}

    def emit(kind: str, **fields: Any) -> None:
        if kind == "train":
            losses[fields["step"]] = fields["loss"]

    splits = {split: batches.open_rows(prepare, split) for split in ("train", "validation")}
    given = TrainSpec.parse(spec)
    _, summary = loop.train(TextClassification().build(), model(), tokenizer(), splits, given, 17, open_storage(out), emit)
    return [losses[step] for step in sorted(losses)], summary


def plain_ddp(prepare: Artifact, spec: dict[str, Any]) -> list[float]:
    """The same mathematics in torch's DistributedDataParallel, nothing of ours but the order of the rows."""
    import torch
    import torch.distributed as dist

    from raybm.tasks import TextClassification
    from raybm.training import batches
    from raybm.training.batches import Schedule, open_rows

    batches.CACHE = f"{prepare.storage.uri}-cache"
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

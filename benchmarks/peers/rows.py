"""What both bare loops share: the case, its rows in the given order, padded, and a clock that prints one JSON line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import transformers
from torch.nn.utils.rnn import pad_sequence

CASE: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text()) if len(sys.argv) > 1 else {}


def model() -> torch.nn.Module:
    """The very model that raybm trained, with the loss that transformers computes for it."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    loaded: torch.nn.Module = getattr(transformers, CASE["class"]).from_pretrained(CASE["model"], dtype=torch.float32)
    return loaded.train()


def optimizer(replica: torch.nn.Module) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in replica.parameters() if p.ndim > 1], "weight_decay": CASE["weight_decay"]},
        {"params": [p for p in replica.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=CASE["lr"], betas=CASE["betas"], fused=True)


def batches() -> Iterator[dict[str, torch.Tensor]]:
    """A rank's batch of every step, in raybm's order."""
    table = pq.read_table(CASE["rows"], columns=["input_ids", "labels"])
    ids, labels = ([torch.tensor(row) for row in table[name].to_pylist()] for name in ("input_ids", "labels"))
    for step in CASE["order"]:
        mine = step[dist.get_rank()]
        mask = pad_sequence([torch.ones_like(ids[i]) for i in mine], batch_first=True)
        padded = pad_sequence([ids[i] for i in mine], batch_first=True, padding_value=CASE["pad"])
        target = pad_sequence([labels[i] for i in mine], batch_first=True, padding_value=-100)
        yield {"input_ids": padded, "attention_mask": mask, "labels": target.squeeze(1) if CASE["one_label"] else target}


class Clock:
    """Loss and seconds of every `window` steps, as a training loop logs them."""

    def __init__(self) -> None:
        self.loss, self.windows, self.losses, self.started = torch.zeros(()), list[float](), list[float](), time.perf_counter()

    def step(self, number: int, loss: torch.Tensor) -> None:
        self.loss += loss.detach()
        if number % CASE["window"] == 0:
            dist.all_reduce(self.loss)
            self.losses.append(round(float(self.loss) / CASE["window"] / dist.get_world_size(), 4))
            self.windows.append(time.perf_counter() - self.started)
            self.loss, self.started = torch.zeros(()), time.perf_counter()

    def print(self) -> None:
        if dist.get_rank() == 0:
            print(json.dumps({"windows": self.windows, "losses": self.losses}), flush=True)

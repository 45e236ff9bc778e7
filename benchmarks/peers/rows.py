"""What the bare loops and Trainer share: the case, its rows in the given order, padded, and a clock that prints one JSON line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from functools import cache
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
    loaded = getattr(transformers, CASE["class"]).from_pretrained(CASE["model"], dtype=torch.float32)
    loaded.config.use_cache = False  # with a cache transformers takes no notice that positions begin anew, and packed texts see each other
    replica: torch.nn.Module = loaded.train()
    return replica


def optimizer(replica: torch.nn.Module) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in replica.parameters() if p.ndim > 1], "weight_decay": CASE["weight_decay"]},
        {"params": [p for p in replica.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=CASE["lr"], betas=CASE["betas"], fused=True)


@cache
def table() -> tuple[list[torch.Tensor], dict[str, list[torch.Tensor]]]:
    """The rows' token ids, and all columns."""
    read = pq.read_table(CASE["rows"])
    columns = {name: [torch.tensor(row) for row in read[name].to_pylist()] for name in read.column_names}
    return columns["input_ids"], columns


def collate(rows: list[int]) -> dict[str, torch.Tensor]:
    """Padded. Packed rows come with positions, which keep the texts in them apart, and need no mask."""
    ids, columns = table()
    padded = pad_sequence([ids[i] for i in rows], batch_first=True, padding_value=CASE["pad"])
    target = pad_sequence([columns["labels"][i] for i in rows], batch_first=True, padding_value=-100)
    made = {"input_ids": padded, "labels": target.squeeze(1) if CASE["one_label"] else target}
    if "position_ids" not in columns:
        return made | {"attention_mask": pad_sequence([torch.ones_like(ids[i]) for i in rows], batch_first=True)}
    positions = [columns["position_ids"][i] for i in rows]
    longest = padded.shape[1]
    return made | {"position_ids": torch.stack([torch.cat([p, torch.arange(longest - len(p)) + p[-1] + 1]) for p in positions])}


def batches() -> Iterator[dict[str, torch.Tensor]]:
    """A rank's batch of every step, in raybm's order."""
    for step in CASE["order"]:
        yield collate(step[dist.get_rank()])


class Clock:
    """Loss and seconds of every `window` steps, as a training loop logs them. As in raybm, the clock stands still while it does."""

    def __init__(self) -> None:
        self.loss, self.windows, self.losses, self.started = torch.zeros(()), list[float](), list[float](), time.perf_counter()

    def step(self, number: int, loss: torch.Tensor) -> None:
        self.loss += loss.detach()
        if number % CASE["window"] == 0:
            self.windows.append(time.perf_counter() - self.started)
            dist.all_reduce(self.loss)
            self.losses.append(round(float(self.loss) / CASE["window"] / dist.get_world_size(), 4))
            self.loss, self.started = torch.zeros(()), time.perf_counter()

    def print(self, **more: float) -> None:
        if dist.get_rank() == 0:
            print(json.dumps({"windows": self.windows, "losses": self.losses, **more}), flush=True)

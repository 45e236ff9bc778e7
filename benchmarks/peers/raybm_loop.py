"""raybm's own ranks without Ray: torchrun in Ray Train's place. Run with the case's JSON file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rows import CASE

from raybm.core.artifact import Artifact
from raybm.core.storage import open_storage
from raybm.stages.train import train_rank
from raybm.training.batches import count_rows


def main() -> None:
    dist.init_process_group("gloo")
    events: list[dict[str, Any]] = []

    def emit(kind: str, **fields: Any) -> None:
        if kind == "train":
            events.append(fields)

    folder = [tempfile.mkdtemp(dir=CASE["place"]) if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(folder)
    storage = open_storage(folder[0])
    prepared = Artifact(open_storage(CASE["prepared"]), "prepare", Path(CASE["prepared"]).name)  # rows are cached by that name
    out = Artifact(storage, "train", "train")
    counts = {split: count_rows(prepared, split) for split in ("train", "validation")}
    config = {"view": CASE["view"], "dataset": CASE["dataset"], "counts": counts, "prepared": prepared, "out": out}
    train_rank(config | {"storage": storage, "peak_flops": None, "until": None}, torch.device("cpu"), emit)
    if dist.get_rank() == 0:
        print(json.dumps({"windows": [event["seconds"] for event in events], "losses": [event["loss"] for event in events]}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

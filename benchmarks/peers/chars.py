"""A bare character language model in nanoGPT's way: random crops of one text, DistributedDataParallel, AdamW, cosine. Run by torchrun."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers

CASE: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text()) if len(sys.argv) > 1 else {}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    text, held_out = Path(CASE["train"]).read_text(encoding="utf-8"), Path(CASE["validation"]).read_text(encoding="utf-8")
    number = {char: i for i, char in enumerate(sorted(set(text + held_out)))}
    data, val = (torch.tensor([number[char] for char in part]) for part in (text, held_out))
    torch.manual_seed(17)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(vocab_size=len(number), **CASE["config"]))
    replica = torch.nn.parallel.DistributedDataParallel(model)
    decayed, spared = ([p for p in model.parameters() if (p.ndim > 1) is many] for many in (True, False))
    groups = [{"params": decayed, "weight_decay": CASE["weight_decay"]}, {"params": spared, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=CASE["lr"], betas=CASE["betas"], fused=True)
    torch.manual_seed(100 + rank)
    block, batch, total = CASE["block"], CASE["batch"] // world, CASE["steps"]
    for step in range(total):
        if step == CASE["warm"]:
            started = time.perf_counter()
        warm, done = math.ceil(CASE["warmup"] * total), 0.0
        done = max(0.0, (step - warm) / max(1, total - warm))
        for group in adam.param_groups:
            group["lr"] = CASE["lr"] * min(1.0, (step + 1) / max(1, warm)) * 0.5 * (1 + math.cos(math.pi * done))
        places = torch.randint(len(data) - block, (batch,))
        rows = torch.stack([data[i : i + block] for i in places])
        loss(replica, rows).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CASE["clip_norm"])
        adam.step()
        adam.zero_grad()
    each = (time.perf_counter() - started) / (total - CASE["warm"])
    model.eval()
    with torch.no_grad():
        blocks = [val[i : i + block] for i in range(0, len(val), block)]
        summed = sum(float(loss(model, row[None])) * (len(row) - 1) for row in blocks if len(row) > 1)
    if rank == 0:
        print(json.dumps({"seconds_a_step": each, "nats": summed / sum(len(row) - 1 for row in blocks)}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def loss(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


if __name__ == "__main__":
    main()

"""A bare DeepSpeed ZeRO loop. Run by torchrun with the case's JSON file, whose `deepspeed` is DeepSpeed's own config."""

from __future__ import annotations

import deepspeed
import torch
import torch.distributed as dist
from rows import CASE, Clock, batches, model, optimizer


def main() -> None:
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    replica = model()
    adam = optimizer(replica)
    engine, *_ = deepspeed.initialize(
        model=replica,
        optimizer=adam,
        config=CASE["deepspeed"],
        lr_scheduler=lambda wrapped: torch.optim.lr_scheduler.LambdaLR(wrapped, lambda step: 1 - step / len(CASE["order"])),
    )
    clock = Clock()
    for number, batch in enumerate(batches(), 1):
        loss = engine(**batch).loss
        engine.backward(loss)
        engine.step()
        clock.step(number, loss)
    clock.print()
    dist.barrier()  # a rank that goes first makes gloo abort in the other
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""A bare DistributedDataParallel loop. Run by torchrun with the case's JSON file."""

from __future__ import annotations

import torch
import torch.distributed as dist
from rows import CASE, Clock, batches, model, optimizer


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    replica = torch.nn.parallel.DistributedDataParallel(model())
    adam = optimizer(replica)
    rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / len(CASE["order"]))
    clock = Clock()
    for number, batch in enumerate(batches(), 1):
        loss = replica(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(replica.parameters(), CASE["clip_norm"])
        adam.step()
        rate.step()
        adam.zero_grad()
        clock.step(number, loss)
    clock.print()
    dist.barrier()  # a rank that goes first makes gloo abort in the other
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""ZeRO stage 0: whole replicas, by torch's DistributedDataParallel, which reduces gradients while the backward pass still runs.

It has the face of DeepSpeed's engine, as far as the loop looks at it. On two CPU ranks a bare DDP loop trained MiniLM at 1.2 times the
tokens/s of a bare DeepSpeed ZeRO-2 loop (benchmarks/train_overhead.py); DeepSpeed's own stage 0 was not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from raybm.training.sharedmemory import summing_hook

FILE = "replica.pt"


class Replicas(DistributedDataParallel):
    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float | None) -> None:
        device = next(model.parameters()).device
        super().__init__(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            find_unused_parameters=True,  # such as a pooler that the task's head passes by
            broadcast_buffers=any(isinstance(module, _BatchNorm) for module in model.modules()),  # elsewhere buffers are constants
            gradient_as_bucket_view=True,
        )
        if device.type == "cpu" and (hook := summing_hook()):
            self.register_comm_hook(None, hook)
        self.optimizer, self.max_norm = optimizer, clip_norm or float("inf")
        self.norm: torch.Tensor | None = None

    def set_gradient_accumulation_boundary(self, boundary: bool) -> None:
        """Gradients are summed over passes and, in the last, averaged over ranks."""
        self.require_backward_grad_sync = boundary

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool = False) -> None:
        loss.backward()

    def step(self) -> None:
        self.norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.max_norm).detach()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def get_global_grad_norm(self) -> torch.Tensor | None:
        return self.norm

    def zero_optimization_stage(self) -> int:
        return 0

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        """Rank 0 writes: the replicas are equal."""
        if dist.get_rank() == 0:
            (Path(folder) / tag).mkdir(parents=True, exist_ok=True)
            torch.save({"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}, Path(folder) / tag / FILE)

    def load_checkpoint(self, folder: str, tag: str, custom_load_fn: Callable[..., None]) -> None:
        state = torch.load(Path(folder) / tag / FILE, map_location="cpu", weights_only=True)
        custom_load_fn(src=state["model"], dst=self.module)
        self.optimizer.load_state_dict(state["optimizer"])

"""Processes with a gloo group between them: ranks without Ray. They are forked from one that has imported what takes its time."""

from __future__ import annotations

import multiprocessing
import os
import queue
import traceback
from collections.abc import Callable
from typing import Any

from raybm.core.ports import free_ports

DEADLINE_S = 240.0


def _serve(rank: int, world: int, port: int, calls: Any, answers: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    while (call := calls.get()) is not None:
        function, args = call
        try:
            answers.put((rank, True, function(*args)))
        except BaseException:  # noqa: BLE001  (handed to the test)
            answers.put((rank, False, traceback.format_exc()))
    dist.destroy_process_group()


class Ranks:
    def __init__(self, world: int = 2) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.preloaded"])
        self.answers = context.Queue()
        self.calls = [context.Queue() for _ in range(world)]
        (port,) = free_ports(1)
        self.processes = [
            context.Process(target=_serve, args=(rank, world, port, self.calls[rank], self.answers), daemon=True) for rank in range(world)
        ]
        for process in self.processes:
            process.start()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """`function(*args)` on every rank at once; their results by rank."""
        for calls in self.calls:
            calls.put((function, args))
        results: dict[int, Any] = {}
        while len(results) < len(self.calls):
            try:
                rank, good, value = self.answers.get(timeout=DEADLINE_S)
            except queue.Empty:
                raise TimeoutError(f"ranks {sorted(set(range(len(self.calls))) - set(results))} did not answer") from None
            if not good:
                raise AssertionError(f"rank {rank}:\n{value}")
            results[rank] = value
        return [results[rank] for rank in range(len(self.calls))]

    def close(self) -> None:
        for calls in self.calls:
            calls.put(None)
        for process in self.processes:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()

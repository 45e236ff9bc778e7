"""A rank of zero_memory.py and plan.py, run by torchrun with a JSON file of cases: raybm's own engine of a small model, and the bytes
of its tensors, what its forward pass keeps, and the seconds of its steps.

Tensors are what Python's garbage collector finds, and the parameters' gradients; each storage counts once. What was there before the
model is not counted, nor the batch. Activations that wait for the backward pass lie in C++ and are not among them: they are counted by
autograd's own hooks (raybm.plan.count.Saved).
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import transformers

from raybm.plan.count import DTYPES, Saved
from raybm.spec.train import TrainSpec
from raybm.tasks import CausalLm, TextClassification
from raybm.training import loop, zero

GLOO_S = 0.5
"""For gloo's thread to let go of the last bucket: it wakes who waits for a collective before it drops the tensors."""
TASKS = {"causal_lm": CausalLm, "text_classification": TextClassification}


class Processor:
    """Stands in for the tokenizer."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def main() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    cases = json.loads(Path(sys.argv[1]).read_text())
    answers = []
    for case in cases:
        answers.append(measure(case))
        if dist.get_rank() == 0:
            print(json.dumps({"case": case["name"], **answers[-1]}), file=sys.stderr, flush=True)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, answers)
    if dist.get_rank() == 0:
        print(json.dumps([[rank[index] for rank in gathered] for index in range(len(cases))]), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """One model under one stage."""
    train, config, rows, length = TrainSpec.parse(case["train"]), case["config"], case["rows"], case["length"]
    task, processor = TASKS[case["task"]]().build(), Processor(config["vocab_size"])
    batch = task.collate(
        [{"input_ids": list(range(3, 3 + length)), "labels": [1] * length, "position_ids": list(range(length))}] * rows, processor
    )
    gc.collect()
    gc.freeze()  # what is there already is looked at no more
    torch.manual_seed(0)
    with zero.sharded_from_the_start(train, dist.get_world_size(), "cpu"):
        model = task.model(None, config, ("a", "b"), processor)
    compute = [] if train.zero.stage or case["watch"] else [passes(task, model, batch, train) for _ in range(case["steps"])]
    peak = [0]
    hooks = []
    if case["watch"]:
        parameters = list(model.parameters())

        def look(_: torch.Tensor) -> None:
            peak[0] = max(peak[0], held(parameters))

        hooks = [parameter.register_post_accumulate_grad_hook(look) for parameter in parameters]  # before DeepSpeed's own
    engine = loop.initialize(model, train)
    seconds, kept, here = [], 0, 0
    for number in range(case["steps"]):
        dist.barrier()
        started = time.perf_counter()
        peak[0] = 0
        engine.set_gradient_accumulation_boundary(True)
        with Saved(model) if number == 0 else nullcontext() as saved:
            total = task.loss(engine, batch).total
        if number == 0:
            kept = saved.bytes
        del saved
        engine.backward(total / rows, scale_wrt_gas=False)
        del total
        spent = time.perf_counter() - started
        if number == case["steps"] - 1:  # the optimiser's states are there since the first step
            time.sleep(GLOO_S)
            here = held(list(model.parameters()))
        started = time.perf_counter()
        engine.step()
        seconds.append(spent + time.perf_counter() - started)
    for hook in hooks:
        hook.remove()
    answer = {
        "held": here,
        "peak": peak[0],
        "saved": kept,
        "step_s": statistics.median(seconds[1:]),
        "bandwidth": bandwidth(),
        "compute_s": statistics.median(compute[1:]) if compute else None,
    }
    if train.zero.stage:
        engine.destroy()
    del engine, model
    gc.collect()
    return answer


def passes(task: Any, model: torch.nn.Module, batch: Any, train: TrainSpec) -> float:
    """Seconds of a forward and a backward pass without DeepSpeed; both ranks at once, as in a step."""
    model.to(DTYPES[train.precision])
    dist.barrier()
    started = time.perf_counter()
    task.loss(model, batch).total.backward()
    spent = time.perf_counter() - started
    model.zero_grad()
    return spent


def bandwidth() -> float:
    """Bytes a second of an addition that no cache holds, both ranks at once (McCalpin's STREAM)."""
    numbers = [torch.ones(8_000_000) for _ in range(3)]
    dist.barrier()
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        torch.add(numbers[0], numbers[1], out=numbers[2])
        spent.append(time.perf_counter() - started)
    return 3 * 4 * 8_000_000 / statistics.median(spent[1:])


def held(parameters: list[torch.Tensor]) -> int:
    """Bytes of all storages that tensors of this process have, but for garbage that Python has not looked at yet."""
    gc.collect()
    found = {}
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    for tensor in [*tensors, *(parameter.grad for parameter in parameters if parameter.grad is not None)]:
        if tensor.device.type == "cpu" and tensor.layout == torch.strided:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    found.pop(0, None)
    return sum(found.values())


if __name__ == "__main__":
    main()

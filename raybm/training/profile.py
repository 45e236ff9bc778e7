"""What a step takes of the device: the model's FLOPs, the time that collectives run, and memory by part. Looked at once in a run (and
once more after a restart), since looking costs a step or so."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from raybm.models.flops import ATTENTION
from raybm.tasks.protocol import Task
from raybm.training.loader import Step

PROFILED = 5  # steps after the start: the optimiser's states are there, and what is allocated once
STEP = "raybm:step"
COLLECTIVE = re.compile(r"^(gloo:|nccl:|ncclDevKernel|deepspeed::inference_all_reduce)")  # as torch's profiler names them


@torch.no_grad()
def flops_per_token(engine: Any, task: Task, step: Step, device: torch.device) -> float:
    """FLOPs of training on a token (of a sample, where rows are no sequences), padding included: those of this step's forward passes, and
    of the backward pass a product for each factor that has a gradient. That is three times the forward pass where all learns (PaLM,
    arXiv:2204.02311, appendix B), twice for frozen weights, once for what no gradient reaches, such as the reference of a preference.
    What checkpointing computes again is not among them. Collective: a forward pass."""
    engine.eval()
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    with torch.compiler.set_stance("force_eager"), counter, _BothPasses(counter) as both:
        for batch in step.batches:
            task.loss(engine, {name: tensor.to(device) for name, tensor in batch.items()})
    return float(both.flops) / max(1, step.padded)


class _BothPasses(TorchDispatchMode):
    """Adds to the FLOPs of a forward pass those of its backward pass, without autograd's graph, which would keep activations and set off
    ZeRO's hooks: a result has a gradient where something that it was made of has one, by storage; weights say so themselves."""

    supports_higher_order_operators = True  # as the counter's

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter, self.flops = counter, 0
        self._reached: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.counter.get_total_flops()
        result = function(*args, **(kwargs or {}))
        learning = [tensor for tensor in _tensors((args, kwargs)) if tensor.requires_grad or _key(tensor) in self._reached]
        factors = sum(tensor.ndim > 1 for tensor in learning)  # a bias is none
        self.flops += (self.counter.get_total_flops() - before) * (1 + min(2, factors))
        if not getattr(function, "is_view", False):
            for tensor in _tensors(result):  # all that is made comes by here, so that a storage at the place of an older one is told anew
                (self._reached.add if learning and tensor.is_floating_point() else self._reached.discard)(_key(tensor))
        return result


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class Profile:
    """`with profile.taken():` around a step; then `communication`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.communication: float | None = None
        """Share of the step in which a collective ran, computing beside it or not."""

    @contextmanager
    def taken(self) -> Iterator[None]:
        on_gpu = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities, acc_events=True) as taken, torch.profiler.record_function(STEP):
            yield
            if on_gpu:
                torch.cuda.synchronize(self.device)
        spans = [(event.name, event.time_range.start, event.time_range.end) for event in taken.events() or ()]
        whole = next(((start, end) for name, start, end in spans if name == STEP), None)
        if whole is not None:
            busy = covered((start, end) for name, start, end in spans if COLLECTIVE.match(name))
            self.communication = round(min(1.0, busy / max(1e-9, whole[1] - whole[0])), 4)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How much of the time axis they cover together."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def held(engine: Any) -> dict[str, int]:
    """Bytes of this rank: `weights`, `gradients` (what of them is left between two steps), `optimizer` (its states, and its own fp32
    weights), and `peak`, the most that was ever allocated (GPU) or resident (CPU). A storage counts once, where it comes first."""
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)  # inside of DeepSpeed's
    seen: set[int] = set()
    parameters = list(engine.module.parameters())
    weights = _bytes([tensor for p in parameters for tensor in (p.data, getattr(p, "ds_tensor", None))], seen)
    gradients = _bytes([p.grad for p in parameters], seen)
    states = [value for state in inner.state.values() for value in state.values()]
    return {"weights": weights, "gradients": gradients, "optimizer": _bytes([*inner.state, *states], seen), "peak": _peak()}


def _bytes(tensors: Iterable[Any], seen: set[int]) -> int:
    total = 0
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage().data_ptr()) and key not in seen:
            seen.add(key)
            total += tensor.untyped_storage().nbytes()
    return total


def _peak() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

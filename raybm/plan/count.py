"""What one step of a model keeps and computes, counted on fake tensors: the task's own model, batch and loss, with shapes and
no memory, so that any architecture is counted as it is and a model of any size on a laptop.

Activations: every storage that comes alive in a forward and a backward pass, parameters and their gradients apart, at the moment
when most are alive. FLOPs: of the matrix products of both passes, as PyTorch's FlopCounterMode counts them.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from raybm.models.adapters import adapt, in_few_bits, recompute
from raybm.models.flops import ATTENTION
from raybm.models.shapes import Shape, counted
from raybm.models.spec import ModelSpec
from raybm.tasks.protocol import Batch, Task

log = logging.getLogger(__name__)
ROWS = (16, 32)  # counted, for what one more takes; with fewer another moment may be the peak, when it is a large gradient that counts
ANY_TOKEN = 5
GROWTH = 1.02  # of a peak over the last one, for which it is worth to look
PIXEL = b"P5 1 1 255\n\0"  # a PGM file
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Counted:
    """Of one row at the length that was counted."""

    shape: Shape
    saved: int
    """Bytes that the forward pass keeps for the backward pass."""
    activations: int
    """Bytes at the peak of forward and backward, that grow with the rows."""
    fixed: int
    """Bytes at that peak that do not (the gradient of the tensor that is being computed)."""
    flops: int
    """Of forward and backward pass."""
    moved: int
    """Bytes that the operations of both passes read and write, each by itself."""


def count(
    task: Task, spec: ModelSpec, config: Mapping[str, Any], precision: str, checkpointing: bool = False, processor: Any = None
) -> Counted | None:
    """Of rows of `spec.max_length`, of the model that `config` describes. `processor`: the task's, where it takes more than a
    tokenizer. The kernels are those of a CPU, of which PyTorch's fused attention is one. None where the task's rows cannot be made up, or
    its model not be counted without their values."""
    processor = processor or Tokens(int(config.get("vocab_size") or 0))
    try:
        model = skeleton(task, spec, config, checkpointing, processor).to(DTYPES[precision]).train()
        shape = as_trained(model, spec, config)
        batches = [task.collate([_row(spec.max_length)] * rows, processor) for rows in ROWS]
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            _on_fake_memory(model)
            few, more = (_pass(task, model, batch, fake) for batch in batches)
    except (KeyError, AttributeError, ValueError, RuntimeError) as error:  # rows of other columns; a value that is asked for
        log.info("the model's step cannot be counted: %s: %s", type(error).__name__, error)
        return None
    per_row = (more.peak - few.peak) // (ROWS[1] - ROWS[0])
    return Counted(
        shape,
        saved=(more.saved - few.saved) // (ROWS[1] - ROWS[0]),
        activations=per_row,
        fixed=max(0, few.peak - ROWS[0] * per_row),
        flops=(more.flops - few.flops) // (ROWS[1] - ROWS[0]),
        moved=(more.moved - few.moved) // (ROWS[1] - ROWS[0]),
    )


def skeleton(task: Task, spec: ModelSpec, config: Mapping[str, Any], checkpointing: bool, processor: Any) -> torch.nn.Module:
    """The model as it is trained, on the meta device. Raises UserError for what the spec asks of it and it cannot do."""
    with torch.device("meta"):
        model = task.model(None, config, ("a", "b"), processor)
        adapt(task.published(model), spec)
    if checkpointing:
        recompute(model)
    return model


def as_trained(model: torch.nn.Module, spec: ModelSpec, config: Mapping[str, Any]) -> Shape:
    """Of a `skeleton`, with what in it does not learn and what is quantised."""
    shape = counted(model, config)
    return replace(shape, quantized=in_few_bits(model)) if spec.lora and spec.lora.quantize else shape


def _on_fake_memory(model: torch.nn.Module) -> None:
    """From the meta device to fake tensors that say they are on a CPU, whose kernels are then chosen. Shared ones stay shared."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty_like(tensor, device="cpu")
                    made[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else empty
                store[name] = made[id(tensor)]


class Tokens:
    """Stands in for a tokenizer, of which a model needs the size and the special tokens, whichever there are."""

    all_special_ids = (0,)

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getattr__(self, name: str) -> int | str:
        if name.endswith("_token_id"):
            return 0
        if name.endswith("_token"):
            return f"<{name}>"
        raise AttributeError(name)


def _row(length: int) -> dict[str, Any]:
    """What the tasks' encoded rows hold, with one picture of a single pixel for all."""
    ids, labels = [ANY_TOKEN] * length, [1] * length
    texts = {"input_ids": ids, "positive_ids": ids, "rejected_ids": ids, "position_ids": list(range(length))}
    return texts | {"labels": labels, "rejected_labels": labels, "starts": [0], "ends": [0], "image": list(PIXEL)}


def _pass(task: Task, model: torch.nn.Module, batch: Batch, fake: FakeTensorMode) -> SimpleNamespace:
    counter, live = FlopCounterMode(display=False, custom_mapping=ATTENTION), _Live(model)
    hooks = [p.register_post_accumulate_grad_hook(_forget) for p in model.parameters() if p.requires_grad]
    with live, counter, _collecting():
        with Saved(model) as saved:
            total = task.loss(model, {name: fake.from_tensor(value) for name, value in batch.items()}).total
        total.backward()
    for hook in hooks:
        hook.remove()
    return SimpleNamespace(saved=saved.bytes, peak=live.peak, moved=live.moved, flops=counter.get_total_flops())


def _forget(parameter: torch.Tensor) -> None:
    parameter.grad = None  # counted elsewhere


@contextmanager
def _collecting() -> Iterator[None]:
    """Collections inside look at what is made inside, and so take no time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Bytes that autograd keeps while this context stands: every storage once, the model's own parameters and buffers apart."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self._sizes: dict[int, int] = {}
        self._kept = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]  # gone, one left its key to another
        self._own = {int(storage._cdata) for storage in self._kept}

    def __enter__(self) -> Saved:
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._kept.clear()

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter):
            return tensor  # of ZeRO-3, which gives a parameter another storage when it gathers it
        if (key := _key(tensor)) not in self._own and key not in self._sizes:
            self._sizes[key] = tensor.untyped_storage().nbytes()
            self._kept.append(tensor.untyped_storage())
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Live(TorchDispatchMode):
    """The bytes of storages that operations made and that are still there, and the most there ever were."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.peak = self.moved = 0
        self._seen = {_key(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.moved += sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and (key := _key(leaf)) not in self._seen:
                storage = leaf.untyped_storage()
                self._seen.add(key)
                self.now += storage.nbytes()
                if self.now > GROWTH * self.peak:
                    gc.collect()  # what checkpointing computed again hangs in cycles, and would seem to stay
                    self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        return result

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

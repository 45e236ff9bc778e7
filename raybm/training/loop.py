"""What a rank does, from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybm.core.storage import Storage
from raybm.spec.train import TrainSpec
from raybm.tasks.protocol import Batch, Task
from raybm.training import checkpoint, zero
from raybm.training.batches import Rows, Schedule, in_order
from raybm.training.watchdog import Watchdog

Emit = Callable[..., None]


@dataclass
class Progress:
    """What is carried from step to step and through checkpoints."""

    step: int = 0
    tokens: int = 0  # trained on, padding apart
    seconds: float = 0.0
    train_loss: float | None = None
    best: float | None = None
    waited: int = 0  # validations since the best
    stopped: bool = False


def train(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: Mapping[str, Rows],
    spec: TrainSpec,
    seed: int,
    storage: Storage,
    emit: Emit,
) -> tuple[Any, dict[str, Any]]:
    """Train until the steps are done or the validation metric stops improving.

    Collective: every rank of torch's process group calls it with the same arguments. `storage` is the artifact's; checkpoints
    go there, and the last committed one is where it starts. Returns DeepSpeed's engine and the run's summary.
    """
    rank, workers = dist.get_rank(), dist.get_world_size()
    device = next(model.parameters()).device
    schedule = Schedule(len(splits["train"]), spec.global_batch, workers, spec.micro_batch, seed)
    total = schedule.total_steps(spec.epochs, spec.max_steps)
    validate_every = spec.validate_every_steps or schedule.steps_per_epoch
    save_every = spec.checkpoint.every_steps or validate_every
    best_by = spec.early_stopping.metric if spec.early_stopping else "loss"

    engine = _initialize(model, spec, workers, schedule.micro_batch, device.type)
    progress = Progress()
    if every := checkpoint.commits(storage):
        checkpoint.load(engine, storage, every[-1])
        progress = Progress(**every[-1].progress)
        emit("resume", step=every[-1].step)

    meter = Meter(device)
    with Watchdog(spec.stall_timeout_s) as watchdog:
        while progress.step < total and not progress.stopped:
            torch.manual_seed(hash((seed, progress.step, rank)))  # dropout repeats after a restart
            for group in engine.optimizer.param_groups:
                group["lr"] = lr = zero.learning_rate(spec, progress.step, total)
            _step(engine, task, tokenizer, splits["train"], schedule.step(progress.step, rank), meter, device)
            progress.step += 1
            watchdog.alive()

            last = progress.step == total
            validates = bool(len(splits["validation"])) and (last or progress.step % validate_every == 0)
            saves = last or progress.step % save_every == 0
            if validates or saves or progress.step % spec.log_every_steps == 0:
                scores = meter.reduce()
                progress.tokens += scores.pop("tokens")
                progress.seconds += scores["seconds"]
                epoch = progress.step / schedule.steps_per_epoch
                emit("train", step=progress.step, steps=total, epoch=round(epoch, 4), lr=lr, grad_norm=_grad_norm(engine), **scores)
                progress.train_loss = scores["loss"]
            if validates:
                validation = validate(engine, task, tokenizer, splits["validation"], schedule.micro_batch, device, watchdog)
                _note_best(progress, validation, spec)
                emit("validate", step=progress.step, **validation)
            if saves or progress.stopped:
                checkpoint.save(engine, storage, progress.step, validation if validates else None, vars(progress), best_by)
                watchdog.alive()
            meter.restart_clock()

    every = checkpoint.commits(storage)
    chosen = (checkpoint.best(every, best_by) if spec.early_stopping else None) or every[-1]
    if chosen.step != progress.step:
        checkpoint.load(engine, storage, chosen)
    summary = {
        "steps": progress.step,
        "train_loss": progress.train_loss,
        "epochs": progress.step / schedule.steps_per_epoch,
        "published_step": chosen.step,
        "validation": chosen.validation,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "tokens_per_s": progress.tokens / max(progress.seconds, 1e-9),
        "workers": workers,
    }
    return engine, summary


def _initialize(model: PreTrainedModel, spec: TrainSpec, workers: int, micro_batch: int, device: str) -> Any:

    import deepspeed

    deepspeed.init_distributed()  # adopts the process group that stands; without it ZeRO-3 sees one rank
    config = zero.deepspeed_config(spec, workers, micro_batch, device)
    engine, *_ = deepspeed.initialize(model=model, optimizer=zero.optimizer(model, spec), config=config)
    return engine


def _step(
    engine: Any, task: Task, tokenizer: PreTrainedTokenizerBase, rows: Rows, parts: list[Any], meter: Meter, device: torch.device
) -> None:
    """One optimiser step: the mean over the units of the whole global batch, however they are dealt."""
    engine.train()
    batches = [_to(task.collate(rows.take(part), tokenizer), device) for part in parts]
    units = torch.stack([task.units(batch) for batch in batches]).sum()
    dist.all_reduce(units)
    weight = dist.get_world_size() * len(batches) / units.clamp(min=1)  # DeepSpeed takes means over ranks and micro-batches
    for batch in batches:
        loss = task.loss(engine, batch)
        engine.backward(loss.total * weight)
        engine.step()
        meter.add(loss.total.detach(), loss.correct, task.units(batch), batch["attention_mask"].sum())


@torch.no_grad()
def validate(
    engine: Any, task: Task, tokenizer: PreTrainedTokenizerBase, rows: Rows, batch: int, device: torch.device, watchdog: Watchdog
) -> dict[str, float]:
    """Loss and accuracy over a whole split, every rank its part. Collective."""
    engine.eval()
    meter = Meter(device)
    for part in in_order(len(rows), dist.get_world_size(), dist.get_rank(), batch):
        inputs = _to(task.collate(rows.take(part), tokenizer), device)
        loss = task.loss(engine, inputs)
        meter.add(loss.total, loss.correct, task.units(inputs), inputs["attention_mask"].sum())
        watchdog.alive()
    scores = meter.reduce()
    return {"loss": scores["loss"], "accuracy": scores["accuracy"], "units": scores["units"]}


class Meter:
    """Sums on the device; read, and so synchronised, only when `reduce` is called."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.started, self.empty = time.perf_counter(), True

    def restart_clock(self) -> None:
        """Leave out the time since the last `reduce` (validation, a checkpoint), if nothing was added since."""
        if self.empty:
            self.started = time.perf_counter()

    def add(self, total: torch.Tensor, correct: torch.Tensor, units: torch.Tensor, tokens: torch.Tensor) -> None:
        self.sums += torch.stack([total.double(), correct.double(), units.double(), tokens.double()])
        self.empty = False

    def reduce(self) -> dict[str, Any]:
        """Over all ranks since the last time. Collective."""
        sums, seconds = self.sums.clone(), time.perf_counter() - self.started
        dist.all_reduce(sums)
        total, correct, units, tokens = sums.tolist()
        counted = max(units, 1.0)
        self.sums.zero_()
        self.started, self.empty = time.perf_counter(), True
        return {
            "loss": total / counted,
            "accuracy": correct / counted,
            "units": int(units),
            "tokens": int(tokens),
            "seconds": seconds,
            "tokens_per_s": round(tokens / max(seconds, 1e-9), 1),
        }


def _note_best(progress: Progress, scores: dict[str, float], spec: TrainSpec) -> None:
    if spec.early_stopping is None:
        return
    rule = spec.early_stopping
    value = -scores[rule.metric] if rule.metric == "loss" else scores[rule.metric]
    if progress.best is None or value > progress.best + rule.min_delta:
        progress.best, progress.waited = value, 0
    else:
        progress.waited += 1
        progress.stopped = progress.waited >= rule.patience


def _grad_norm(engine: Any) -> float | None:
    norm = engine.get_global_grad_norm()
    return None if norm is None else round(float(norm), 6)


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def export(engine: Any) -> dict[str, torch.Tensor] | None:
    """The whole weights on rank 0's CPU, gathered from the shards. Collective; None on the other ranks."""
    sharded = engine.zero_optimization_stage() == 3
    state = engine._zero3_consolidated_16bit_state_dict() if sharded else engine.module.state_dict()
    if dist.get_rank() != 0:
        return None
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

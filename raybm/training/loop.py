"""What a rank does, from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from raybm.core.errors import UserError
from raybm.core.storage import Storage
from raybm.models.adapters import recompute
from raybm.spec.train import TrainSpec
from raybm.tasks.protocol import Batch, Task
from raybm.training import checkpoint, zero
from raybm.training.average import Average
from raybm.training.batches import Rows, Schedule
from raybm.training.energy import metered
from raybm.training.loader import Loader, Step, collate, draw
from raybm.training.meter import Meter
from raybm.training.optimizers import learning_rate, optimizer
from raybm.training.profile import PROFILED, Profile, flops_per_token, held
from raybm.training.replicas import Replicas
from raybm.training.watchdog import Watchdog

Emit = Callable[..., None]
PLATEAU_PATIENCE = 2  # validations without a lower loss after which the plateau schedule halves the rate


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
    rate: float = 1.0  # what plateaus have left of the learning rate
    energy_kwh: float = 0.0  # where it is measured
    lowest: float | None = None  # validation loss
    flat: int = 0  # validations since the lowest
    profile: dict[str, Any] = field(default_factory=dict)  # of rank 0's last look at a step

    def count(self, scores: dict[str, Any]) -> None:
        """Take in what the meter measured since the last time; the tokens are only in the sum."""
        self.tokens += scores.pop("tokens")
        self.seconds += scores["seconds"]
        self.train_loss = scores["loss"]

    def summary(self) -> dict[str, Any]:
        return {
            "steps": self.step,
            "train_loss": self.train_loss,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_s": self.tokens / max(self.seconds, 1e-9),
            "profile": self.profile,
        }


@dataclass(frozen=True)
class Course:
    """Which steps do more than train."""

    total: int
    end: int
    """Where this call ends: the last step, or where it is to pause."""
    validate_every: int
    save_every: int
    log_every: int
    validation: bool
    """Whether there are rows for it."""

    @classmethod
    def of(cls, spec: TrainSpec, schedule: Schedule, until: int | None, validation: bool) -> Course:
        total = schedule.total_steps(spec.epochs, spec.max_steps)
        every = spec.validate_every_steps or schedule.steps_per_epoch
        end = min(total, until * every) if until else total
        return cls(total, end, every, spec.checkpoint.every_steps or every, spec.log_every_steps, validation)

    def validates(self, step: int) -> bool:
        return self.validation and (step == self.total or step % self.validate_every == 0)

    def saves(self, step: int) -> bool:
        return step == self.end or step % self.save_every == 0

    def logs(self, step: int) -> bool:
        return self.validates(step) or self.saves(step) or step % self.log_every == 0


@contextmanager
def engine_of(model: PreTrainedModel, spec: TrainSpec) -> Iterator[Any]:
    """What trains the model: DeepSpeed's engine, or Replicas. It is freed when the block ends. Collective: every rank of torch's process
    group."""
    engine = initialize(model, spec)
    try:
        yield engine
    finally:
        if engine.zero_optimization_stage():
            engine.destroy()  # its hooks keep the model and the optimiser's states alive


def train(
    engine: Any,
    task: Task,
    processor: Any,
    splits: Mapping[str, Rows],
    spec: TrainSpec,
    seed: int,
    storage: Storage,
    emit: Emit,
    peak_flops: float | None = None,
    until: int | None = None,
) -> dict[str, Any]:
    """Train until the steps are done, the validation metric stops improving, or there have been validations `until` it is to pause: then
    the summary says `paused`, and a checkpoint stands.

    Collective: every rank calls it with the same arguments. `storage` is the artifact's; checkpoints go there, and the last committed one
    is where it starts. `peak_flops`: of one rank's device, FLOP/s; with it events carry `mfu`, the share of it that the model's own
    products on real tokens make. Returns the run's summary. Raises UserError where the loss is no number any more.
    """
    rank, workers = dist.get_rank(), dist.get_world_size()
    device = next(engine.module.parameters()).device
    rows = splits["train"]
    schedule = Schedule.of(spec, rows, workers, seed)
    course = Course.of(spec, schedule, until, bool(len(splits["validation"])))
    best_by = spec.early_stopping.metric if spec.early_stopping else "loss"

    average = Average(engine.module, spec.ema) if spec.ema else None
    progress = Progress()
    every = checkpoint.agreed(storage)
    if every and spec.zero.offload_optimizer == "nvme":  # DeepSpeed 0.19 does not read its states back
        emit("anew", step=every[-1].step)
        checkpoint.forget(storage)
    elif every:
        checkpoint.load(engine, storage, every[-1], average)
        progress = Progress(**every[-1].progress)
        if until and progress.step > course.end:  # trained past it already: to where there is a validation
            course = replace(course, end=min(course.total, -(-progress.step // course.validate_every) * course.validate_every))
        emit("resume", step=every[-1].step, validations=every[-1].step // course.validate_every)

    with torch.compiler.set_stance("force_eager"):
        task.check(engine, rows.column, device)
    began = progress.step if until else None
    skips = Skips(engine, spec.precision == "fp16", progress.step)
    meter, look, looks_at = Meter(device), Profile(device), progress.step + PROFILED
    flops: float | None = None
    loader = Loader(task, processor, rows, schedule, rank, progress.step, course.total, spec.stall_timeout_s)
    with Watchdog(spec.stall_timeout_s) as watchdog, loader, metered(device) if spec.energy else nullcontext() as energy:
        while progress.step < course.end and not progress.stopped:
            now = spec.at(progress.step)
            lr = _set_rates(engine, now, progress, course.total)
            asked = time.perf_counter()
            step = loader.next()
            waited_s = time.perf_counter() - asked
            if peak_flops and flops is None:
                flops = flops_per_token(engine, task, step, device)
                meter.restart_clock()
            meter.count(step, waited_s)
            _seed(draw(seed, progress.step, rank), device)
            progress.step += 1
            with look.taken() if progress.step == looks_at and rank == 0 else nullcontext():
                _step(engine, task, step, now.l1, meter, device)
            if progress.step == looks_at:
                progress.profile = {"communication": look.communication, **held(engine)}
                emit("profile", step=progress.step, **progress.profile)
            if average:
                average.update(progress.step)
            watchdog.alive()

            validates, saves = course.validates(progress.step), course.saves(progress.step)
            if course.logs(progress.step):
                scores = meter.reduce()
                _check_finite(scores["loss"], progress.step, lr)
                progress.count(scores)
                scores |= skips.look(progress.step, lr)
                epoch = round(progress.step / schedule.steps_per_epoch, 4)
                mfu = {"mfu": round(flops * scores["tokens_per_s"] / workers / peak_flops, 4)} if flops and peak_flops else {}
                emit("train", step=progress.step, steps=course.total, epoch=epoch, lr=lr, grad_norm=_grad_norm(engine), **scores, **mfu)
            if validates or saves:
                _share_statistics(engine)
            if validates:
                with average.applied() if average else nullcontext():
                    validation = validate(engine, task, processor, splits["validation"], schedule, device, watchdog)
                saves |= _note_best(progress, validation, spec)
            if energy and (validates or saves):
                progress.energy_kwh += energy.take()
            if validates:
                emit("validate", step=progress.step, **validation, **({"energy_kwh": progress.energy_kwh} if energy else {}))
            if saves or progress.stopped:
                _check_weights(engine, progress.step, lr, device)
                validated = validation if validates else None
                with watchdog.within(spec.checkpoint.timeout_s):
                    checkpoint.save(engine, storage, progress.step, validated, vars(progress), best_by, average, began)
            meter.restart_clock()

    every = checkpoint.agreed(storage)
    if progress.step < course.total and not progress.stopped:
        return {"paused": True, "steps": progress.step, "validation": every[-1].validation}
    chosen = (checkpoint.best(every, best_by) if spec.early_stopping else None) or every[-1]
    if chosen.step != progress.step:
        checkpoint.load(engine, storage, chosen, average)
    if average:
        average.settle()
    summary = progress.summary() | {"epochs": progress.step / schedule.steps_per_epoch, "workers": workers}
    summary |= {"published_step": chosen.step, "validation": chosen.validation}
    if spec.energy:
        summary["energy_kwh"] = progress.energy_kwh
    if flops and peak_flops:
        summary["mfu"] = flops * summary["tokens_per_s"] / workers / peak_flops
    return summary


def _set_rates(engine: Any, spec: TrainSpec, progress: Progress, total: int) -> float:
    """Learning rate and weight decay of the step to come; the learning rate."""
    lr = learning_rate(spec, progress.step, total) * progress.rate
    for group in engine.optimizer.param_groups:
        group["lr"], group["weight_decay"] = lr * group["rate"], spec.weight_decay if group["matrices"] else 0.0
    return lr


def _seed(seed: int, device: torch.device) -> None:
    """Dropout repeats after a restart. torch.manual_seed does this, too, and takes 0.1 ms for GPUs that are not there."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def initialize(model: PreTrainedModel, spec: TrainSpec) -> Any:
    """The engine alone. Collective."""
    if spec.gradient_checkpointing:
        recompute(model)
    engine: Any
    if spec.zero.stage == 0:
        engine = Replicas(model, optimizer(model, spec), spec.clip_norm)
    else:
        import deepspeed

        deepspeed.init_distributed()  # adopts the process group that stands; without it ZeRO-3 sees one rank
        for parameter in model.parameters():
            if parameter.ndim == 0:  # such as CLIP's temperature: DeepSpeed 0.19 sends weights as bytes, which a number cannot be viewed as
                parameter.data, parameter.was_number = parameter.data.reshape(1), True
        trainable = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters() if parameter.requires_grad)
        config = zero.deepspeed_config(spec, dist.get_world_size(), next(model.parameters()).device.type, trainable)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer(model, spec), config=config)
    if spec.compile:
        engine.compile()
    return engine


def _step(engine: Any, task: Task, step: Step, l1: float, meter: Meter, device: torch.device) -> None:
    """One optimiser step: the mean over the units of the whole global batch, however they are dealt."""
    engine.train()
    units = torch.full((), float(step.units), device=device)  # a tensor() of it would wait for the GPU
    dist.all_reduce(units)
    weight = dist.get_world_size() / units.clamp(min=1)  # DeepSpeed takes the mean over ranks
    for place, batch in enumerate(step.batches):
        engine.set_gradient_accumulation_boundary(place == len(step.batches) - 1)
        loss = task.loss(engine, _to(batch, device))
        total = loss.total * weight
        if l1 and place == 0:
            total = total + l1 * sum(p.abs().sum() for p in engine.module.parameters() if p.requires_grad)
        engine.backward(total, scale_wrt_gas=False)
        meter.add(loss)
    engine.step()


@torch.no_grad()
def validate(
    engine: Any, task: Task, processor: Any, rows: Rows, schedule: Schedule, device: torch.device, watchdog: Watchdog
) -> dict[str, float]:
    """Loss and accuracy over a whole split, every rank its part. Collective."""
    engine.eval()
    meter = Meter(device)
    for part in schedule.everything(rows.sizes, dist.get_rank()):
        step = collate(task, processor, rows, [part], None)
        meter.add(task.loss(engine, _to(step.batches[0], device)))
        meter.count(step)
        watchdog.alive()
    scores = meter.reduce()
    return {name: scores[name] for name in ("loss", "accuracy", "units") if name in scores}


def _share_statistics(engine: Any) -> None:
    """Running statistics of batch norms: rank 0's, which is what is published. DistributedDataParallel does so itself. Collective."""
    if engine.zero_optimization_stage():
        for module in engine.module.modules():
            for buffer in module.buffers(recurse=False) if isinstance(module, _BatchNorm) else ():
                dist.broadcast(buffer, 0)


class Skips:
    """Steps that DeepSpeed passed over, since their gradients were no numbers. In fp16, where those overflow, that is as it should be."""

    def __init__(self, engine: Any, overflows: bool, step: int) -> None:
        self._engine, self._overflows = engine, overflows
        self._step, self._skipped = step, self._so_far()

    def _so_far(self) -> int:
        return int(getattr(self._engine, "skipped_steps", 0))

    def look(self, step: int, lr: float) -> dict[str, int]:
        """How many so far, where there are any. Raises UserError where nothing was learnt since the last look."""
        skipped = self._so_far()
        steps, passed_over = step - self._step, skipped - self._skipped
        self._step, self._skipped = step, skipped
        if passed_over == steps and not self._overflows:
            raise _diverged("no gradient was a number", step, lr)
        return {"skipped": skipped} if skipped or self._overflows else {}


def _check_finite(loss: float, step: int, lr: float) -> None:
    if not math.isfinite(loss):
        raise _diverged(f"the loss is {loss}", step, lr)


def _check_weights(engine: Any, step: int, lr: float, device: torch.device) -> None:
    """Those that a checkpoint is to hold: the loss of their step was that of the ones before. Collective."""
    parts = [_here(parameter) for parameter in engine.module.parameters() if parameter.requires_grad]
    finite = torch.stack([part.isfinite().all().to(device) for part in parts]).all().int()
    dist.all_reduce(finite, dist.ReduceOp.MIN)
    if not finite:
        raise _diverged("a weight is no number any more", step, lr)


def _here(parameter: Any) -> torch.Tensor:
    """This rank's part of a parameter, without what fills up the last rank's."""
    part = getattr(parameter, "ds_tensor", parameter).detach()
    if part.ndim == 0 or not hasattr(parameter, "ds_tensor"):  # 0: it lies on a disk
        return part
    return part[: max(0, parameter.ds_numel - dist.get_rank() * part.numel())]


def _diverged(what: str, step: int, lr: float) -> UserError:
    remedy = "Lower train.lr or train.clip_norm, raise train.warmup, or look for odd rows."
    return UserError(f"{what} at step {step}, with a learning rate of {lr:.3g}.", where="train", remedy=remedy)


def _note_best(progress: Progress, scores: dict[str, float], spec: TrainSpec) -> bool:
    """Early stopping and the plateau schedule. Returns whether these weights are the best so far, and wanted."""
    if spec.schedule == "plateau":
        if progress.lowest is None or not math.isfinite(progress.lowest) or scores["loss"] < progress.lowest:
            progress.lowest, progress.flat = scores["loss"], 0
        else:
            progress.flat += 1
        if progress.flat >= PLATEAU_PATIENCE:
            progress.rate, progress.flat = progress.rate / 2, 0
    rule = spec.early_stopping
    if rule is None:
        return False
    value = -scores["loss"] if rule.metric == "loss" else scores[rule.metric]
    if progress.best is None or value > progress.best + rule.min_delta:
        progress.best, progress.waited = value, 0
        return True
    progress.waited += 1
    progress.stopped = progress.waited >= rule.patience
    return False


def _grad_norm(engine: Any) -> float | None:
    """None where there is none, or an fp16 gradient overflowed: that step changes no weight."""
    norm = engine.get_global_grad_norm()
    return round(float(norm), 6) if norm is not None and math.isfinite(norm) else None


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def export(engine: Any, part: torch.nn.Module | None = None) -> dict[str, torch.Tensor] | None:
    """The whole weights (of a `part` of the model) on rank 0's CPU, gathered from the shards. Collective; None on the other ranks."""
    sharded = engine.zero_optimization_stage() == 3
    state = engine._zero3_consolidated_16bit_state_dict() if sharded else engine.module.state_dict()
    if dist.get_rank() != 0:
        return None
    numbers = [name for name, parameter in engine.module.named_parameters() if hasattr(parameter, "was_number")]
    state |= {name: state[name].reshape(()) for name in numbers}
    inside = next(f"{name}." if name else "" for name, module in engine.module.named_modules() if module is (part or engine.module))
    chosen = {name.removeprefix(inside): tensor.detach() for name, tensor in state.items() if name.startswith(inside)}
    if sharded:  # gathered: on the CPU already
        return chosen
    copies: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for tensor in chosen.values():
        if (place := (tensor.data_ptr(), tensor.shape)) not in copies:  # tied weights stay one
            copies[place] = tensor.to("cpu", copy=True)
    return {name: copies[tensor.data_ptr(), tensor.shape] for name, tensor in chosen.items()}

"""Train: a gang of Ray Train workers, each a rank of the loop in raybm/training/loop.py."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import ray
from pydantic import PositiveInt

from raybm import plan
from raybm.core.artifact import Artifact
from raybm.core.context import Context
from raybm.core.errors import Busy, Paused, RaybmError, StorageError, UserError
from raybm.core.spec import Spec
from raybm.core.storage import Storage
from raybm.models.spec import ModelSpec
from raybm.spec.train import TrainSpec
from raybm.tasks import TaskSpec

if TYPE_CHECKING:
    import torch

NAME = "train"
INPUTS = ("prepare",)
CODE = ("core", "models", "tasks", "training", "spec/train.py", "stages/train.py")
ON_RAY = True
outside = None
POLL_S = 0.5
ANSWER_S = 60.0  # for an actor that has nothing to compute
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
START_S = 60.0  # at least, for one start of a group of workers: its place, and its processes
STARTS = 4  # at most, that together wait for the job's placement_timeout_s
SHARED_S = 30.0  # within which a user's mistake that all ranks see has come from all of them

T = TypeVar("T")


class View(Spec):
    seed: int
    task: TaskSpec
    model: ModelSpec
    train: TrainSpec
    workers: PositiveInt
    """Shards and sums depend on it, so it is part of what is hashed."""

    def decisive(self) -> dict[str, Any]:
        made = super().decisive()
        made["train"] = {name: value for name, value in made["train"].items() if name not in TrainSpec.OPERATIONAL}
        return made


def run(view: View, inputs: Mapping[str, Artifact], out: Artifact, context: Context) -> dict[str, Any]:
    from raybm.training import checkpoint
    from raybm.training.batches import check_batch, count_rows

    dataset = context.records["prepare"].metrics
    counts = {split: count_rows(inputs["prepare"], split) for split in ("train", "validation")}
    check_batch(counts["train"], dataset["tokens"].get("train", 0), view.train)
    resources = context.resources
    on_gpu = resources.gpus_per_worker > 0
    config = {
        "view": view.canonical(),
        "prepared": inputs["prepare"],
        "out": out,
        "storage": context.storage,
        "dataset": dataset,
        "counts": counts,
        "peak_flops": _peak_flops(view, resources),
        "until": context.until,
    }
    if context.branches_from is not None:
        checkpoint.branch(context.branches_from.storage, out.storage, view.train.phases[-1].after)
    summary = _alone(config, on_gpu, context) if context.alone else _gang(view, config, on_gpu, context)
    if summary.get("paused"):
        raise Paused(summary["steps"], summary["validation"])
    checkpoint.sweep(out.storage)
    return summary


def _gang(view: View, config: dict[str, Any], on_gpu: bool, context: Context) -> dict[str, Any]:
    """The ranks as workers of Ray Train's."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raybm import ops

    resources, storage = context.resources, config["out"].storage
    starts, start_s = _starts(resources.placement_timeout_s)
    os.environ[START_TIMEOUT] = f"{start_s:g}"  # Ray has no other way to be told
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    sink = ray.remote(num_cpus=0, scheduling_strategy=here)(EventSink).remote()
    filesystem, place = storage.arrow("ray_train")
    trainer = TorchTrainer(
        worker,
        train_loop_config=config | {"sink": sink},
        scaling_config=ScalingConfig(
            num_workers=view.workers,
            use_gpu=on_gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker} | ({"GPU": resources.gpus_per_worker} if on_gpu else {}),
            accelerator_type=resources.accelerator_type,
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex[:8],  # never Ray's own resumption: the loop resumes from its commits
            storage_path=place,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=view.train.max_failures, controller_failure_limit=starts - 1),
            worker_runtime_env={} if on_gpu else {"env_vars": ops.KEEPS_MEMORY},
        ),
        torch_config=TorchConfig(
            backend="nccl" if on_gpu else "gloo", timeout_s=ceil(max(view.train.checkpoint.timeout_s, view.train.stall_timeout_s))
        ),
    )
    failure = _fit(trainer, sink, context)
    told: dict[str, Any] | UserError = ray.get(sink.result.remote(), timeout=ANSWER_S)
    if isinstance(told, UserError):
        raise told
    if failure is not None:
        raise _cause(failure, context.storage) from failure
    storage.delete("ray_train")
    return told


def _starts(timeout_s: float) -> tuple[int, float]:
    """How often a group of workers is tried to be started, and the seconds of each try."""
    starts = int(max(1, min(STARTS, timeout_s // START_S)))
    return starts, max(START_S, timeout_s / starts)


def _alone(config: dict[str, Any], on_gpu: bool, context: Context) -> dict[str, Any]:
    """The one rank, in this process: two seconds to the first step, where Ray Train takes twenty."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}  # which DeepSpeed reads
        dist.init_process_group("nccl" if on_gpu else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    summary = train_rank(config, torch.device("cuda", 0) if on_gpu else torch.device("cpu"), context.events.emit)
    assert summary is not None
    return summary


def _peak_flops(view: View, resources: Any) -> float | None:
    """Of what a rank runs on; None for a GPU whose kind is not known."""
    if not resources.gpus_per_worker:
        return plan.cpu(resources.cpus_per_worker, view.workers).fp32
    here = plan.accelerators(name for node in ray.nodes() if node["Alive"] for name in node["Resources"])
    kind = resources.accelerator_type or (here[0] if len(here) == 1 else None)
    device = plan.by_accelerator(kind)
    if device is None:
        return None
    return min(1.0, float(resources.gpus_per_worker)) * (device.fp32 if view.train.precision == "fp32" else device.bf16)


def _cause(error: BaseException, storage: Storage) -> RaybmError:
    """What a rank (or Ray Train's controller) raised, as an error of ours."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    failures = [*(getattr(error, "worker_failures", None) or {}).values(), getattr(error, "controller_failure", None)]
    causes = [getattr(failure, "_base_exc", failure) for failure in failures if failure is not None]
    for cause in causes:
        if isinstance(cause, RaybmError):
            return cause
        if isinstance(cause, WorkerGroupStartupTimeoutError):
            what = "the workers got no place in the cluster in the time that the job waits for it."
            return Busy(what, where="resources.placement_timeout_s", remedy="Wait for other jobs to end, ask for less, or raise it.")
    try:
        storage.exists("anything")  # Ray's own errors about a storage that has gone come as text inside of others
    except StorageError as gone:
        return gone
    first = next(iter(causes), error)
    what = next((line for line in reversed(str(first).splitlines()) if line.strip()), repr(first))
    remedy = "The run's log has the whole of it; the same command goes on from the last checkpoint."
    return RaybmError(what, where="train", remedy=remedy)


class EventSink:
    """An actor between rank 0 and the driver: what happened, in order, until the driver takes it."""

    def __init__(self) -> None:
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._result: dict[str, Any] | UserError = {}
        self._mistaken = 0

    def push(self, kind: str, fields: dict[str, Any]) -> None:
        self._events.append((kind, fields))

    def drain(self) -> list[tuple[str, dict[str, Any]]]:
        events, self._events = self._events, []
        return events

    def finish(self, result: dict[str, Any]) -> None:
        self._result = result

    def mistaken(self, error: UserError) -> None:
        """From a rank."""
        self._result, self._mistaken = error, self._mistaken + 1

    def ranks_mistaken(self) -> int:
        return self._mistaken

    def result(self) -> dict[str, Any] | UserError:
        """The loop's summary, or a mistake of the user's."""
        return self._result


def _fit(trainer: Any, sink: Any, context: Context) -> BaseException | None:
    """Run the trainer in a thread of its own, for this one to bring the ranks' events to the run's, and so that Ctrl-C reaches us and
    not Ray's own handler. What it raised."""
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001  (for the waiting thread)
            failures.append(error)

    thread = threading.Thread(target=fit, name="raybm-fit", daemon=True)
    thread.start()
    asked = sink.drain.remote()
    while thread.is_alive():
        thread.join(timeout=POLL_S)
        if ray.wait([asked], timeout=0)[0]:  # a head that is busy may take its time
            _emit(ray.get(asked, timeout=ANSWER_S), context)
            asked = sink.drain.remote()
    for last in (asked, sink.drain.remote()):  # what was asked for before the end, and what came after that
        _emit(ray.get(last, timeout=ANSWER_S), context)
    return failures[0] if failures else None


def _emit(drained: list[tuple[str, dict[str, Any]]], context: Context) -> None:
    for kind, fields in drained:
        context.events.emit(kind, **fields)


# ---- in the worker


def worker(config: dict[str, Any]) -> None:
    """What each rank runs. A mistake of the user's is handed over: to start again would not mend it. Where not all ranks see it, those that
    do not may wait for the one that does: it raises then, and the group that is started in place of this one leaves at once."""
    from ray.train import get_context
    from ray.train.torch import get_device

    sink, rank = config["sink"], get_context().get_world_rank()

    def emit(kind: str, **fields: Any) -> None:
        if rank == 0:
            sink.push.remote(kind, fields)

    if ray.get(sink.ranks_mistaken.remote(), timeout=ANSWER_S):
        return
    try:
        summary = train_rank(config, get_device(), emit)
    except UserError as error:
        ray.get(sink.mistaken.remote(error), timeout=ANSWER_S)
        until = time.monotonic() + SHARED_S
        while ray.get(sink.ranks_mistaken.remote(), timeout=ANSWER_S) < get_context().get_world_size():
            if time.monotonic() > until:
                raise
            time.sleep(POLL_S)
        return
    if summary is not None and rank == 0:  # the others do not wait while it saves the model
        ray.get(sink.finish.remote(summary), timeout=ANSWER_S)


def train_rank(config: dict[str, Any], device: torch.device, emit: Callable[..., None]) -> dict[str, Any] | None:
    """Train and save; the summary, on rank 0 at least. Collective."""
    import torch
    from transformers import logging as transformers_logging

    from raybm import ops
    from raybm.models import chat, processors
    from raybm.models.adapters import adapt, merged, quantization
    from raybm.training import loop, zero
    from raybm.training.batches import Rows, open_rows

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    view = View.parse(config["view"], "train")
    prepared, out, dataset = config["prepared"], config["out"], config["dataset"]
    ops.use(device.type)
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    task = view.task.build()

    def ready() -> tuple[Any, tuple[Path | None, dict[str, Any]], dict[str, Rows]]:
        zero.check_device(view.train, device.type)
        splits = {split: open_rows(prepared, split, count) for split, count in config["counts"].items()}
        return processors.load(view.task.INPUT, prepared.folder("processor")), _start(view, dataset["config"], config["storage"]), splits

    processor, start, splits = _agreed(ready)
    torch.manual_seed(view.seed)  # a new head starts the same on every rank
    with zero.sharded_from_the_start(view.train, view.workers, device.type):
        quantised = quantization(
            view.model.lora, lambda: task.published(task.model(None, _config(start[0]) | start[1], dataset["labels"], processor))
        )
        model = task.model(start[0], start[1] | quantised, dataset["labels"], processor)
    published = task.published(model)
    adapt(published, view.model)
    model.to(device)

    with loop.engine_of(model, view.train) as engine:
        summary = loop.train(
            engine, task, processor, splits, view.train, view.seed, out.storage, emit, config["peak_flops"], config["until"]
        )
        if summary.get("paused"):
            return summary
        state = loop.export(engine, published)
    if state is None:
        return None
    if view.model.lora is not None:
        published, state = merged(task.published(task.model(*start, dataset["labels"], processor)), state, view.model.lora)
    published.config.use_cache = True
    parameters = sum(state[name].numel() for name, _ in published.named_parameters())  # tied ones once; saving empties `state`
    signature = task.signature(dataset["labels"], view.model.max_length)
    if "messages" in signature.inputs:
        chat.stop_at_turns(published, processor)
    _save(published, state, processor, signature, out.storage)
    return summary | {"parameters": parameters}


def _start(view: View, learnt: Mapping[str, Any], storage: Storage) -> tuple[Path | None, dict[str, Any]]:
    """Where the weights come from: a folder on this node, or the config of a new model; `learnt` from the data goes into either's."""
    scheme, _, rest = view.model.ref.partition(":")
    if scheme == "scratch":
        return None, {"model_type": rest, **view.model.config, **learnt}
    from raybm.models.references import resolve

    return resolve(view.model.ref, storage), dict(learnt)


def _config(folder: Path | None) -> dict[str, Any]:
    from transformers import AutoConfig

    return {} if folder is None else dict(AutoConfig.from_pretrained(folder).to_dict())


def _agreed(work: Callable[[], T]) -> T:
    """What `work` gives on this rank, once it went well on all; else the first rank's error on all, so that none waits for another
    that has left. Collective."""
    import torch.distributed as dist

    made: T | None = None
    failure: RaybmError | None = None
    try:
        made = work()
    except RaybmError as error:
        failure = error
    failures: list[RaybmError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    for failed in failures:
        if failed is not None:
            raise failed
    return cast(T, made)


def _save(model: Any, state: dict[str, Any], processor: Any, signature: Any, storage: Storage) -> None:
    """The folder that `from_pretrained` loads, with the signature beside the weights."""
    with tempfile.TemporaryDirectory(prefix="raybm-model-") as temporary:
        folder = storage.local("model") or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, state_dict=state, safe_serialization=True)
        processor.save_pretrained(folder)
        signature.write(folder)
        if storage.local("model") is None:
            storage.upload(folder, "model")

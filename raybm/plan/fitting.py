"""What is settled by the plan before a job runs: whether it can fit at all, and its ZeRO stage where the job leaves it open."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

from raybm.core.errors import PlacementError, SpecError, UserError
from raybm.core.storage import Storage
from raybm.models.shapes import Shape
from raybm.models.shapes import shape as shape_of
from raybm.plan import choice
from raybm.plan.choice import Option, Row, Way
from raybm.plan.devices import DEVICES, Device, by_accelerator, cpu
from raybm.plan.job import device_of, measure, micro_batch, packed, row_by_formula, samples, setup_of
from raybm.plan.memory import PROCESS_BYTES, Setup, Stage
from raybm.plan.units import size
from raybm.spec.job import JobSpec
from raybm.spec.train import TrainSpec

NOTHING = "More workers would not do: use a smaller model, shorter rows, train.gradient_checkpointing or workers with more memory."
SURE = 3.0  # where this many times what the formulas say fits, nothing is counted


def refuse(job: JobSpec, storage: Storage, memory_bytes: int | None) -> None:
    """Raises PlacementError for a job that cannot fit into `memory_bytes` a rank, and says what would. None: not known.

    Held against it is what is certain: the states of the model, and one row of the greatest length, or the whole micro-batch where
    rows are packed to that length. A micro-batch of padded rows is mostly shorter; `raybm plan` warns of it."""
    device = _device(job)
    check_precision(job, device)
    if memory_bytes is None or (quick := shape_of(job.model, storage)) is None:
        return
    share = -(-samples(job) // job.resources.workers)
    certain = micro_batch(job, share) if packed(job) else 1
    room = choice.usable(device, memory_bytes)
    setup = setup_of(job, job.resources.workers, job.resources.gpus_per_worker > 0)
    if SURE * choice.option(quick, row_by_formula(job, quick), setup, certain, share, device, room).memory.total <= room:
        return
    if (measured := measure(job, storage)) is not None and (
        found := misfit(*measured[:2], setup, certain, share, device, room, allowed(job, device))
    ):
        raise found


def check_precision(job: JobSpec, device: Device) -> None:
    """Raises PlacementError."""
    if job.train.precision == "bf16" and not device.has_bf16:
        raise PlacementError(f"{device.name} has no bf16.", where="train.precision", remedy="Use fp16 or fp32.")


def misfit(
    shape: Shape, row: Row, setup: Setup, rows: int, share: int, device: Device, room: int, ways: Collection[Way]
) -> PlacementError | None:
    """Why micro-batches of `rows` do not fit into `room` bytes a rank, and what would (of the `ways`); None where they do."""
    need = choice.option(shape, row, setup, rows, share, device, room)
    if need.fits:
        return None
    if room <= 0:
        what = f"a rank has {size(room + PROCESS_BYTES)}, and its process alone takes {size(PROCESS_BYTES)}."
        return PlacementError(what, where="resources", remedy="Put fewer workers on a node, or use nodes with more memory.")
    same = choice.largest(shape, row, setup, share, device, room)
    would = same if same.fits else choice.recommended(choice.options(shape, row, setup, share, device, room), ways)
    more = _workers_that_fit(shape, row, setup, device, room) if (3, "none") in ways else ""
    remedy = f"This fits: {choice.in_words(would)}." if would else more or NOTHING
    what = (
        f"a rank needs {size(need.memory.total)} and has {size(room)} for it ({choice.in_words(need)}: states {size(need.memory.held)}, "
        f"activations {size(need.memory.activations or 0)})."
    )
    return PlacementError(what, where="resources", remedy=remedy)


def _workers_that_fit(shape: Shape, row: Row, setup: Setup, device: Device, room: int) -> str:
    """How many ranks ZeRO-3 would want; "" where none would do."""
    for doubling in range(1, 12):
        ranks = setup.ranks * 2**doubling
        if choice.option(shape, row, replace(setup, ranks=ranks, stage=3), 1, 1, device, room).fits:
            return f"ZeRO stage 3 on {ranks} workers, each with as much memory, would fit."
    return ""


def _device(job: JobSpec) -> Device:
    """For a GPU that the table lacks any other will do where its memory is given."""
    resources = job.resources
    if not resources.gpus_per_worker:
        return cpu(resources.cpus_per_worker, resources.workers)
    return by_accelerator(resources.accelerator_type) or DEVICES["a100-40gb"]


def resolve_auto(job: JobSpec, storage: Storage, memory_bytes: int | None = None) -> JobSpec:
    """The job with `train.zero.stage: auto` settled: the lowest stage that fits, with the largest micro-batch (unless the job
    names one); other jobs as they are. `memory_bytes`: a rank's; default that of the accelerator that the job names, or a
    share of this machine's. Raises PlacementError where nothing fits or the model is not here, NotFound, UserError."""
    zero = job.train.zero
    if zero.stage != "auto":
        return job
    device = device_of(job)
    check_precision(job, device)
    room = choice.usable(device, memory_bytes)
    measured = measure(job, storage)
    if measured is None:
        what = "the stage is to follow from the model, which is not on this machine yet."
        raise PlacementError(what, where="train.zero.stage", remedy="Fetch it first, or name a stage.")
    shape, row, _ = measured
    share = -(-samples(job) // job.resources.workers)
    setup = setup_of(job, job.resources.workers, job.resources.gpus_per_worker > 0)
    ways = allowed(job, device)
    stages: tuple[Stage, ...] = (0, 1, 2, 3)
    tried = [replace(setup, stage=stage) for stage in stages if (stage, setup.offload) in ways]
    if not tried:
        raise UserError("no stage does all that the job asks for.", where="train.zero", remedy="Name a stage, to hear why not.")
    given = micro_batch(job, share) if job.train.micro_batch or job.train.micro_tokens else None
    for setup in tried:
        found = (
            choice.option(shape, row, setup, given, share, device, room)
            if given
            else choice.largest(shape, row, setup, share, device, room)
        )
        if found.fits:
            return _with(job, found, given is None)
    found_none = PlacementError("no ZeRO stage fits.", where="train.zero.stage")
    raise misfit(shape, row, tried[-1], given or 1, share, device, room, ways) or found_none


def allowed(job: JobSpec, device: Device) -> list[Way]:
    """The stages and ways to offload that the spec's own rules let the job have (on such a device)."""
    ways = []
    document = job.canonical() | {"sweep": None}
    if device.name != "cpu" and not job.resources.gpus_per_worker:
        document["resources"] |= {"gpus_per_worker": 1}
    for stage, offload in choice.LADDER:
        kept = job.train.zero.offload_optimizer or "cpu"
        zero = {
            "stage": stage,
            "offload_optimizer": None if offload == "none" else kept,
            "offload_parameters": (job.train.zero.offload_parameters or "cpu") if offload == "all" else None,
        }
        with suppress(SpecError):
            JobSpec.parse(document | {"train": document["train"] | {"zero": document["train"]["zero"] | zero}})
            ways.append((stage, offload))
    return ways


def _with(job: JobSpec, found: Option, batch: bool) -> JobSpec:
    train: TrainSpec = job.train
    changes = {"zero": train.zero.model_copy(update={"stage": found.stage})} | ({"micro_batch": found.micro_batch} if batch else {})
    return job.model_copy(update={"train": train.model_copy(update=changes)})

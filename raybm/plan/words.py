"""The plan for a person: a table of `raybm plan`, and the few lines of a dry run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from raybm.core.storage import Storage
from raybm.plan.choice import Option, in_words, usable
from raybm.plan.files import CHECKPOINTS, Disk, disk
from raybm.plan.job import micro_batch, row_by_formula, samples, setup_of, shape_as_trained
from raybm.plan.memory import PROCESS_BYTES, memory
from raybm.plan.units import counted, duration, size
from raybm.spec.job import JobSpec

if TYPE_CHECKING:
    from raybm.plan import Plan

HEADS = ("stage", "offload", "weights", "gradients", "optimiser", "buffers", "micro-batch", "activations", "needs", "sends", "step")
HEADS_OF_A_RUN = ("run", "kWh", "USD")


def summary(job: JobSpec, storage: Storage) -> list[str]:
    """By formulas alone; torch is loaded only where the spec makes the model's shape another one than its weights have. Raises NotFound,
    UserError, StorageError."""
    shape = shape_as_trained(job, storage)
    if shape is None:
        return [f"{job.model.ref} is not on this machine yet: memory and disk are known once it is."]
    ranks = job.resources.workers
    rows = micro_batch(job, -(-samples(job) // ranks))
    row = row_by_formula(job, shape)
    setup = setup_of(job, ranks, job.resources.gpus_per_worker > 0)
    use = memory(shape, setup, row.bytes_of(rows))
    parts = {"weights": use.weights, "gradients": use.gradients, "optimiser": use.optimizer, "buffers": use.buffers}
    said = ", ".join(f"{name} {size(count)}" for name, count in parts.items())
    activations = f", activations up to {size(use.activations)} ({rows} rows of {row.tokens} tokens)" if use.activations else ""
    return [
        f"model   {counted(shape.parameters)} parameters ({job.model.ref})",
        f"memory  about {size(use.total + PROCESS_BYTES)} on each of {ranks} ranks: {said}{activations}, "
        f"the process itself {size(PROCESS_BYTES)}",
        f"disk    {_disk(disk(job, shape, setup), storage)}",
    ]


def table(made: Plan, storage: Storage) -> list[str]:
    """All of `raybm plan`, a line a string."""
    shape, row, device = made.shape, made.row, made.device
    how = "counted on the model" if made.counted else "by formula"
    each_row = "activations not known" if row.activations is None else f"{size(row.activations)} of activations"
    mark = {id(made.recommended): " ←"}
    rows = [[*HEADS, *(HEADS_OF_A_RUN if made.steps else ())], *(_cells(made, option) for option in made.options)]
    widths = [max(len(line[column]) for line in rows) for column in range(len(rows[0]))]
    shown = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in rows]
    marked = [shown[0], *(line + mark.get(id(option), "") for line, option in zip(shown[1:], made.options, strict=True))]
    estimate = ", ".join(f"{name} {count / 2**30:.2f}" for name, count in made.deepspeed().items())
    return [
        f"model   {counted(shape.parameters)} parameters ({made.model}); {counted(made.flops_per_token)} FLOP a token to train "
        f"(6N + attention{', less what is frozen' if shape.frozen else ''})",
        f"sample  {row.tokens} tokens at most: {counted(row.flops)} FLOP, {each_row} ({how})",
        f"ranks   {made.workers} on {device.name} ({size(usable(device))} of {size(device.memory)} usable, {device.source}); "
        f"{made.precision}, {made.optimizer}, global batch {made.global_batch}" + (f", {made.steps} steps" if made.steps else ""),
        "",
        *marked,
        "",
        _verdict("this job", made.chosen) if made.chosen else "this job leaves the stage open (auto)",
        _verdict("advice", made.recommended) if made.recommended else "advice  nothing fits: more workers, a larger device, shorter rows",
        f"disk    {_disk(made.disk, storage)}",
        f"DeepSpeed's own estimators say, GiB a rank in 16 bit without activations (stage-offload): {estimate}",
    ]


def _cells(made: Plan, option: Option) -> list[str]:
    use, run = option.memory, made.run(option)
    activations = "?" if use.activations is None else size(use.activations)
    parts = [size(count) for count in (use.weights, use.gradients, use.optimizer, use.buffers)]
    batch = str(option.micro_batch) if option.fits else "none fits"
    cells = [str(option.stage), option.offload, *parts, batch, activations, size(use.total)]
    cells += [size(option.communication_bytes), duration(option.seconds.step)]
    if made.steps:
        cells += [duration(run["seconds"] or 0), f"{run['kwh'] or 0:.3g}", _money(run["usd"])]
    return cells


def _money(usd: float | None) -> str:
    return "?" if usd is None else "<0.01" if 0 < usd < 0.01 else f"{usd:,.2f}"


def _verdict(name: str, option: Option) -> str:
    return f"{name:7} {in_words(option)}: {size(option.memory.total)} a rank; {'fits' if option.fits else 'does not fit'}"


def _disk(needed: Disk, storage: Storage) -> str:
    folder = storage.local()
    free = f", {size(shutil.disk_usage(_existing(folder)).free)} free" if folder else ""
    kept = f"{CHECKPOINTS} checkpoints (last, best, next) of {size(needed.checkpoint)}"
    published = f", published copy {size(needed.published)}" if needed.published else ""
    return (
        f"about {size(needed.total)} in {storage.uri}: rows {size(needed.data)} (from {size(needed.sources)}), {kept}, "
        f"model {size(needed.model)}{published}{free}"
    )


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())

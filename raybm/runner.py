"""The life of a job: a fixed tuple of stages, each done once."""

from __future__ import annotations

import datetime
import errno
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any

from raybm import plan
from raybm.core.artifact import Artifact, Record, artifact, code_digest, library_versions
from raybm.core.context import Context
from raybm.core.lease import Lease
from raybm.core.runs import Walker
from raybm.core.spec import Spec
from raybm.core.storage import Storage, local_errors
from raybm.models import checks, shapes
from raybm.models.references import pinned
from raybm.spec.job import JobSpec
from raybm.stages import Stage, evaluate, prepare, publish, train

STAGES: tuple[Stage, ...] = (prepare, train, evaluate, publish)
LEASE_TIMEOUT_S = 3600.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Step:
    """A stage of this job and where its output lies."""

    stage: Stage
    view: Any
    inputs: Mapping[str, Artifact]
    out: Artifact
    done: bool


def settled(job: JobSpec, storage: Storage) -> JobSpec:
    """The job with what moves replaced by what it means now: a model's alias or branch, and what the plan chooses (of a sweep's job, for
    each trial by itself). Raises NotFound, and UserError for a model that cannot be."""
    checks.check(job.model, shapes.place(job.model, storage))
    if not (job.sweep and job.sweep.changes("model")):  # else each trial has names of its own
        plan.check_names(job, storage)
    job = job.model_copy(update={"model": job.model.model_copy(update={"ref": pinned(job.model.ref, storage)})})
    return job if job.sweep else plan.resolve_auto(job, storage)


def steps(job: JobSpec, storage: Storage) -> list[Step]:
    """The stages that the (settled) spec has sections for, with which are done already."""
    made: dict[str, Artifact] = {}
    found = []
    for stage in STAGES:
        if getattr(job, stage.NAME, job) is None:
            continue
        view = _view(stage.View, job)
        inputs = {name: made[name] for name in stage.INPUTS if name in made}
        outside = stage.outside(view) if stage.outside else ""
        out = made[stage.NAME] = artifact(storage, stage.NAME, view, outside, inputs, code_digest(stage.CODE))
        found.append(Step(stage, view, inputs, out, out.record() is not None))
    return found


def _view(cls: type[Spec], job: JobSpec) -> Spec:
    """Exactly the fields that the stage's view names, from the job or its resources."""
    return cls(**{name: getattr(job, name) if hasattr(job, name) else getattr(job.resources, name) for name in cls.model_fields})


def run(
    job: JobSpec, run: Walker, context: Context, on_ray: Callable[[], AbstractContextManager[Any]], last: str | None = None
) -> dict[str, Record]:
    """Walk the stages, up to the `last`; `on_ray` is entered before the first that has work to do on a cluster. Raises what a stage
    raises, and Cancelled or Conflict where the run was stopped."""
    try:
        return _walk(job, run, context, on_ray, last)
    except KeyboardInterrupt:
        if run.stopped:
            raise run.stopped from None
        raise


def _walk(
    job: JobSpec, run: Walker, context: Context, on_ray: Callable[[], AbstractContextManager[Any]], last: str | None
) -> dict[str, Record]:
    records: dict[str, Record] = {}
    # Left from right to left: where a stage fails, Ray goes first, since its workers may still write, then the lease.
    with ExitStack() as held, ExitStack() as cluster:
        on_cluster = False
        for step in steps(job, context.storage):
            name, out = step.stage.NAME, step.out
            run.update(stage=name)
            record = out.record()
            if record is None and step.stage.ON_RAY and not on_cluster:
                cluster.enter_context(on_ray())
                on_cluster = True
            if record is None:
                lease = held.enter_context(Lease(out.storage, run.id, LEASE_TIMEOUT_S, context.progress, run.stop))
                record = out.record() or _make(step, replace(context, records=dict(records)), lease)
                held.close()
            else:
                context.progress(f"{name}: done already ({out.key})")
            records[name] = record
            context.events.emit("stage", stage=name, key=out.key, seconds=record.seconds)
            run.update(artifacts={stage: made.key for stage, made in records.items()})
            if name == last:
                break
    return records


def _make(step: Step, context: Context, lease: Lease) -> Record:
    name, started = step.stage.NAME, time.time()
    context.progress(f"{name}: starts ({step.out.key})")
    try:
        metrics = step.stage.run(step.view, step.inputs, step.out, context)
    except OSError as error:  # of a temporary file, or one that a library writes
        if error.errno not in FULL:
            raise
        with local_errors(str(error.filename or name)):
            raise
    record = Record(
        stage=name,
        key=step.out.key,
        inputs={input_name: made.key for input_name, made in step.inputs.items()},
        view=step.view.canonical(),
        code=code_digest(step.stage.CODE),
        versions=library_versions(),
        metrics=metrics,
        started=datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(time.time() - started, 2),
    )
    lease.renew()  # else another run has taken over, and it is its record to write
    step.out.commit(record)
    context.progress(f"{name}: done in {record.seconds:.0f} s")
    return record

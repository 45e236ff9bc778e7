"""What a sweep is before its first trial: whether the job takes all values, what the trials share, and where they stand."""

from __future__ import annotations

import hashlib
import json

from raybm import runner
from raybm.core.errors import Problem, SpecError
from raybm.core.storage import Storage
from raybm.models.spec import ModelInput
from raybm.search.space import changed, probes
from raybm.spec.job import JobSpec
from raybm.spec.sweep import SweepSpec


def check(job: JobSpec) -> None:
    """Whether the job takes every value that may be drawn. Raises SpecError with all that it does not take."""
    assert job.sweep is not None
    plain = job.model_copy(update={"sweep": None}).canonical()
    problems: dict[tuple[str, str], Problem] = {}
    for path, point in probes(job.sweep.space):
        try:
            JobSpec.parse(changed(plain, point))
        except SpecError as error:
            for wrong in error.problems:
                what = wrong.what if wrong.path == path else f"{wrong.path}: {wrong.what}"
                problems.setdefault((path, what), Problem(f"sweep.space.{path}", f"with {point[path]!r}: {what}", wrong.remedy))
    if problems:
        raise SpecError(tuple(problems.values()), "")


def prepares(sweep: SweepSpec) -> bool:
    """Whether its trials have rows of their own to prepare."""
    return sweep.changes("task", "data", *(f"model.{name}" for name in ModelInput.model_fields))


def place(job: JobSpec, storage: Storage) -> str:
    """Where the trials of a job's sweep stand. By everything that decides what is tried and what comes of it, the data and raybm's own code
    among them; not by how much."""
    assert job.sweep is not None
    spec = job.sweep.canonical()
    content = {name: spec[name] for name in ("sampler", "scheduler", "objectives", "warm_start")}
    content["space"] = list(spec["space"].items())  # a grid goes by their order
    content["artifacts"] = [step.out.key for step in runner.steps(base(job), storage)]
    return f"sweeps/{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]}"


def base(job: JobSpec) -> JobSpec:
    """What a trial does of the job."""
    assert job.sweep is not None
    evaluates = any(name.startswith("evaluate.") for name in job.sweep.objectives)
    return job.model_copy(update={"sweep": None, "publish": None} | ({} if evaluates else {"evaluate": None}))

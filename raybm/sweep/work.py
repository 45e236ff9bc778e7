"""What a trial does in its own process."""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ray import tune as raytune

from raybm import plan, runner
from raybm.core.artifact import Artifact, Record
from raybm.core.cache import cache_folder
from raybm.core.context import Context
from raybm.core.errors import Busy, Paused, RaybmError, UserError
from raybm.core.events import Events
from raybm.core.runs import HEARTBEAT_S, Walker
from raybm.core.storage import Storage, open_storage
from raybm.spec.job import JobSpec
from raybm.spec.sweep import TIME
from raybm.sweep.search import STEPS

log = logging.getLogger(__name__)
T = TypeVar("T")
FINISHED = "finished"
ERROR = "error"
PAUSED = "paused"
OVER = {FINISHED, ERROR, PAUSED}
"""One of which a trial's last report has."""
LETS_GO_S = 120
"""That a stopped trial's process has before the next trial is to begin in it; Tune's own 2 s are too few for one that frees its memory."""


def beating(config: dict[str, Any], beats: Any, work: Callable[[dict[str, Any]], None]) -> None:
    """The work, with a sign of life every few seconds."""
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(LETS_GO_S)  # read here, where the next trial waits for the end of this one
    if (place := config.get("cwd")) and Path(place).is_dir():  # Tune has changed it, and the job's paths begin where its driver works
        os.chdir(place)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_S):
            beats.beat.remote(config["name"])

    beats.beat.remote(config["name"])
    thread = threading.Thread(target=beat, daemon=True, name="raybm-trial-heartbeat")
    thread.start()
    try:
        work(config)
    finally:
        over.set()
        thread.join(timeout=HEARTBEAT_S)
        beats.beat.remote(config["name"], over=True)


def run_trial(config: dict[str, Any]) -> None:
    """The stages of one job, with a report at each validation. What the user can mend is reported, and not tried again."""
    told: dict[str, Any] = {TIME: 0}
    step = 0

    def listen(kind: str, fields: dict[str, Any]) -> None:
        nonlocal step
        if kind == "resume":
            told[TIME], step = fields["validations"], fields["step"]
        elif kind == "train":
            told[TIME] = told[TIME] if fields["step"] > step else 0  # it began anew
            step = fields["step"]
        elif kind == "validate":
            told.update({f"validation.{name}": value for name, value in fields.items() if name != "step"})
            told[TIME] += 1
            raytune.report(dict(told))

    try:
        records = _once_there_is_room(lambda: _walk(config, listen))
    except Paused as paused:
        if config["never_past"] and told[TIME] > config["until"]:
            raytune.report({**told, ERROR: _past(paused.step)})
            return
        known = {f"validation.{name}": value for name, value in paused.validation.items()}  # also where it stood there already
        raytune.report({**told, **known, STEPS: paused.step, PAUSED: 1})
        return
    except UserError as error:
        raytune.report({**told, ERROR: str(error)})
        return
    finally:
        gc.collect()  # the next trial of this process wants the memory
    trained, every = records["train"].metrics, JobSpec.parse(config["job"]).train.validate_every_steps
    if config["never_past"] and config["until"] * (every or round(trained["steps"] / trained["epochs"])) < trained["steps"]:
        raytune.report({**told, ERROR: _past(trained["steps"])})
        return
    raytune.report({**told, **dict(_flat(records)), FINISHED: 1})


def _once_there_is_room(work: Callable[[], T]) -> T:
    """A trial waits for its place, and for another that trains the same, as long as the sweep goes on: neither is a failure of its own."""
    while True:
        try:
            return work()
        except Busy as busy:
            log.warning("%s", busy)


def _past(step: int) -> str:
    """Why a population's member fails: others go on from its checkpoint at the exchange, and their phases begin there."""
    return f"the same values have been trained to step {step} already, past the exchange. Give the job another seed or storage."


@cache
def _settled() -> None:
    """Once a process: what it holds for good is not looked through again after each trial, which takes a quarter of a second."""
    import raybm.stages.train
    import raybm.training.loop  # noqa: F401

    gc.collect()
    gc.freeze()


def _walk(config: dict[str, Any], listen: Callable[[str, dict[str, Any]], None]) -> dict[str, Record]:
    job = JobSpec.parse(config["job"])
    storage = open_storage(job.storage)
    job = plan.resolve_auto(job, storage) if config["settled"] else runner.settled(job, storage)  # which loads transformers: 5 s of a core
    place = f"{config['run']}/trials/{config['name']}"
    folder = storage.local(f"runs/{place}") or cache_folder("runs") / place
    alone = job.resources.workers == 1
    if alone:
        _settled()
    context = Context(
        job.canonical(),
        job.name,
        storage,
        job.resources,
        folder,
        Events(folder, [listen]),
        log.info,
        alone=alone,
        until=config["until"],
        branches_from=_before(job, storage),
    )
    return runner.run(job, Alone(f"{config['run']}/{config['name']}"), context, nullcontext)


def _before(job: JobSpec, storage: Storage) -> Artifact | None:
    """The training of the same job up to its last phase."""
    if not job.train.phases:
        return None
    before = job.model_copy(update={"train": job.train.model_copy(update={"phases": job.train.phases[:-1]})})
    return next(step.out for step in runner.steps(before, storage) if step.stage.NAME == "train")


class Alone(Walker):
    """Nobody watches a trial but Tune."""

    def __init__(self, name: str) -> None:
        self.id, self.stopped = name, None

    def update(self, **changes: Any) -> None:
        """A trial's state is what it reports."""

    def stop(self, why: RaybmError) -> None:
        """Somebody else makes the same artifact: this process ends, and Tune begins the trial again."""
        log.error("%s", why)
        os._exit(1)


def _flat(records: Mapping[str, Record]) -> Iterator[tuple[str, float]]:
    """Numbers of the stages' records by path; the validation of the published step stands as the last one's do."""
    for stage, record in records.items():
        yield from _leaves(f"{stage}.", record.metrics)
    for name, value in (records["train"].metrics.get("validation") or {}).items():
        yield f"validation.{name}", value


def _leaves(path: str, node: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(f"{path}{name}.", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{path}{name}", float(value)

"""A search under Ray Tune: what Tune asks, what it is told, and what a trial does in its own process."""

from __future__ import annotations

import gc
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
from ray import tune as raytune
from ray.tune import Callback
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybm import runner
from raybm.core.artifact import Artifact, Record
from raybm.core.cache import cache_folder
from raybm.core.context import Context
from raybm.core.errors import Paused, RaybmError
from raybm.core.events import Events
from raybm.core.runs import HEARTBEAT_S, Walker
from raybm.core.storage import Storage, open_storage
from raybm.search import Population
from raybm.spec.job import JobSpec, Resources
from raybm.spec.sweep import TIME
from raybm.sweep.search import STEPS, Point, Search, Trial

log = logging.getLogger(__name__)
FINISHED = "finished"
ERROR = "error"
PAUSED = "paused"
OVER = {FINISHED, ERROR, PAUSED}
"""One of which a trial's last report has."""
LETS_GO_S = 120
"""That a stopped trial's process has before the next trial is to begin in it; Tune's own 2 s are too few for one that frees its memory."""
BEATS_TIMEOUT_S = 60.0
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trials' numbers stand in files of our own,
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # and what a sweep goes on from, too
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a table whatever `verbose` says
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed has none
}


def tune(search: Search, work: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Try until nothing is left, or the budget's time is over. `work`: what a trial does with what `Asking.suggest` gives it, where it is
    not to train."""
    spec, resources = search.spec, search.base.resources
    alone = resources.workers == 1
    scheduler = None
    if spec.scheduler is not None and not isinstance(spec.scheduler, Population):
        scheduler = spec.scheduler.build(search.first, spec.objectives[search.first], TIME)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    beats = ray.remote(num_cpus=0, scheduling_strategy=here)(Beats).remote(search.base.train.stall_timeout_s)
    asking = Asking(search, beats)
    hours = spec.budget.hours
    ends = time.monotonic() + hours * 3600 if hours else math.inf
    os.environ.update(QUIET)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # why a trial failed, we say
    folder = Path(tempfile.mkdtemp(prefix="raybm-tune-"))
    try:
        raytune.run(
            raytune.with_resources(
                raytune.with_parameters(_beating, beats=beats, work=work or trial), _ask(resources) if alone else {"CPU": 0.01}
            ),
            search_alg=asking,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=spec.concurrent or _fitting(resources),
            max_failures=spec.max_failures,
            raise_on_failed_trial=False,
            reuse_actors=alone,
            time_budget_s=hours and hours * 3600,
            callbacks=[asking.watch],
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            storage_path=str(folder),
            verbose=0,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    asking.close(in_time=time.monotonic() < ends)


def _ask(resources: Resources) -> dict[str, float]:
    """What a trial of one worker holds."""
    asked = {"CPU": resources.cpus_per_worker} | ({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {})
    return asked | ({f"accelerator_type:{resources.accelerator_type}": 0.001} if resources.accelerator_type else {})


def _fitting(resources: Resources) -> int:
    """How many trials the cluster holds at a time, a CPU left for data."""
    there = ray.cluster_resources()
    room = math.floor((there.get("CPU", 1.0) - 1) / (resources.workers * resources.cpus_per_worker) + 1e-9)
    if resources.gpus_per_worker:
        room = min(room, math.floor(there.get("GPU", 0.0) / (resources.workers * resources.gpus_per_worker) + 1e-9))
    return max(1, int(room))


class Asking(Searcher):
    """Tune's face of a search."""

    def __init__(self, search: Search, beats: Any) -> None:
        super().__init__(metric=search.first, mode=search.spec.objectives[search.first])
        self.search = search
        self.running: dict[str, tuple[Point, Trial]] = {}
        self.watch = Watch(self, beats)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        following = self.search.next()
        if following is None:
            return None if self.search.more else str(Searcher.FINISHED)
        self.running[trial_id] = following
        trial = following[1]
        job = self.search.trial_job(trial).canonical()
        return {"job": job, "name": trial.name, "run": self.search.run, "until": self.search.until(trial)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self.running and TIME in result and not OVER & set(result):
            point, trial = self.running[trial_id]
            self.running[trial_id] = point, self.search.reported(point, trial, _numbers(result))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        result = result or {}
        cut = self.search.population is not None and not OVER & set(result)  # by the end of the time
        if not error and not cut and trial_id in self.running:  # errors: the callback knows why
            reason = str(result.get(ERROR, ""))
            self.over(trial_id, "failed" if reason else FINISHED if FINISHED in result else "stopped", result, reason)

    def over(self, trial_id: str, end: str, result: Mapping[str, Any], error: str) -> None:
        point, trial = self.running.pop(trial_id)
        metrics = _numbers(result) or trial.metrics
        seconds = round(float(result.get("time_total_s", 0.0)), 2)
        self.search.ended(point, trial.model_copy(update={"end": end, "metrics": metrics, "seconds": seconds, "error": error}))

    def close(self, in_time: bool) -> None:
        """What runs when the time is over has been stopped; a population's members go on when the same sweep is begun again. What is left
        before that, Tune gave up without a word, as it does where a process does not let go of the trial before."""
        for trial_id in list(self.running):
            if in_time:
                self.over(trial_id, "failed", {}, "its process could not be used again.")
            elif self.search.population is None:
                self.over(trial_id, "stopped", {}, "")

    def save(self, checkpoint_path: str) -> None:
        """Trials are kept in the storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Trials are kept in the storage."""

    def __reduce__(self) -> tuple[Any, ...]:  # Tune pickles it beside its own state, which nobody reads
        return (object, ())


class Watch(Callback):
    """Why trials died; and the end of those that give no sign of life."""

    def __init__(self, asking: Asking, beats: Any) -> None:
        self.asking, self.beats = asking, beats
        self.looked = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._alive(trial)  # so that one which never gives a sign is missed, too

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id not in self.asking.running:
            return
        text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""  # of all its starts
        place = self.asking.search.context.run_dir / "trials" / self.asking.running[trial.trial_id][1].name
        place.mkdir(parents=True, exist_ok=True)
        (place / "error.txt").write_text(text, encoding="utf-8")
        reason = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it died.")
        self.asking.over(trial.trial_id, "failed", trial.last_result or {}, reason.partition(" Some common causes")[0])

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune takes several steps a second."""
        if time.monotonic() - self.looked < HEARTBEAT_S:
            return
        self.looked = time.monotonic()
        silent = ray.get(self.beats.silent.remote(), timeout=BEATS_TIMEOUT_S)
        for trial in trials:
            running, actor = self.asking.running.get(trial.trial_id), trial.temporary_state.ray_actor
            if running and actor is not None and running[1].name in silent:
                self.asking.search.context.progress(f"  point {running[1].point}: no sign of life; its process is ended")
                ray.kill(actor)  # Tune begins it again, or has it failed
                self._alive(trial)

    def _alive(self, trial: Any) -> None:
        if trial.trial_id in self.asking.running:
            self.beats.beat.remote(self.asking.running[trial.trial_id][1].name)

    def __reduce__(self) -> tuple[Any, ...]:
        return (object, ())


class Beats:
    """An actor that trials tell that they live: a process that was stopped, or is held by what it calls, cannot end itself."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._last: dict[str, float] = {}

    def beat(self, name: str, over: bool = False) -> None:
        if over:
            self._last.pop(name, None)
        else:
            self._last[name] = time.monotonic()

    def silent(self) -> list[str]:
        """Trials that have not beaten for the timeout."""
        return [name for name, last in self._last.items() if time.monotonic() - last > self._timeout_s]


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """Ours of what a trial reported, not Tune's own."""
    return {name: float(value) for name, value in result.items() if name == TIME or ("." in name and isinstance(value, int | float))}


# ---- in the trial's process


def _beating(config: dict[str, Any], beats: Any, work: Callable[[dict[str, Any]], None]) -> None:
    """The work, with a sign of life every few seconds."""
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(LETS_GO_S)  # read here, where the next trial waits for the end of this one
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


def trial(config: dict[str, Any]) -> None:
    """The stages of one job, with a report at each validation. What the user can mend is reported, and not tried again."""
    told: dict[str, Any] = {TIME: 0}

    def listen(kind: str, fields: dict[str, Any]) -> None:
        if kind == "resume":
            told[TIME] = fields["validations"]
        elif kind == "validate":
            told.update({f"validation.{name}": value for name, value in fields.items() if name != "step"})
            told[TIME] += 1
            raytune.report(dict(told))

    try:
        records = _walk(config, listen)
    except Paused as paused:
        known = {f"validation.{name}": value for name, value in paused.validation.items()}  # also where it stood there already
        raytune.report({**told, **known, STEPS: paused.step, PAUSED: 1})
        return
    except RaybmError as error:
        raytune.report({**told, ERROR: str(error)})
        return
    finally:
        gc.collect()  # the next trial of this process wants the memory
    raytune.report({**told, **dict(_flat(records)), FINISHED: 1})


def _walk(config: dict[str, Any], listen: Callable[[str, dict[str, Any]], None]) -> dict[str, Record]:
    job = JobSpec.parse(config["job"])
    storage = open_storage(job.storage)
    job = runner.settled(job, storage)
    place = f"{config['run']}/trials/{config['name']}"
    folder = storage.local(f"runs/{place}") or cache_folder("runs") / place
    alone = job.resources.workers == 1
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

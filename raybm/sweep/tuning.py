"""A search under Ray Tune: what Tune asks and is told, and the end of trials that give no sign of life."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune as raytune
from ray.exceptions import RayError
from ray.tune import Callback, Stopper
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybm.core.errors import RaybmError
from raybm.core.runs import HEARTBEAT_S
from raybm.search import Population
from raybm.spec.job import Resources
from raybm.spec.sweep import TIME
from raybm.sweep.points import Point
from raybm.sweep.search import Search
from raybm.sweep.trial import Trial
from raybm.sweep.work import ERROR, FINISHED, OVER, beating, run_trial

log = logging.getLogger(__name__)

BEATS_TIMEOUT_S = 60.0
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trials' numbers stand in files of our own,
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # and what a sweep goes on from, too
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a table whatever `verbose` says
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed has none
}


def tune(search: Search, room: int, work: Callable[[dict[str, Any]], None] | None = None, still: Callable[[], None] = lambda: None) -> None:
    """Try until nothing is left, or the budget's time is over. `room`: trials that the cluster holds at a time. `work`: what a trial does
    with what `Asking.suggest` gives it, where it is not to train. `still`: raises Conflict where another run has taken over."""
    spec, resources = search.spec, search.base.resources
    alone = resources.workers == 1
    scheduler = None
    if spec.scheduler is not None and not isinstance(spec.scheduler, Population) and not search.pauses:
        scheduler = spec.scheduler.build(search.points.first, spec.objectives[search.points.first], TIME)
        recall(scheduler, search)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    beats = ray.remote(num_cpus=0, scheduling_strategy=here)(Beats).remote(search.base.train.stall_timeout_s)
    hours, room = spec.budget.hours, max(1, room)  # one where an autoscaler has yet to bring the nodes
    asking = Asking(search, beats, spec.concurrent or room, time.monotonic() + hours * 3600 if hours else math.inf)
    search.context.progress(f"sweep: {asking.places} trials at a time" + (f"; {room} would fit" if room != asking.places else ""))
    begin = {"TUNE_MAX_PENDING_TRIALS_PG": str(asking.places)}  # trials that begin at a time; 1 where the limit is not Tune's own
    os.environ.update(QUIET | begin)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # why a trial failed, we say
    folder = Path(tempfile.mkdtemp(prefix="raybm-tune-"))
    try:
        raytune.run(
            raytune.with_resources(
                raytune.with_parameters(beating, beats=beats, work=work or run_trial), _ask(resources) if alone else {"CPU": 0.01}
            ),
            search_alg=asking,
            scheduler=scheduler,
            num_samples=-1,
            max_failures=spec.max_failures,
            raise_on_failed_trial=False,
            reuse_actors=alone,
            time_budget_s=hours and hours * 3600,
            callbacks=[asking.watch],
            stop=Spent(search),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            storage_path=str(folder),
            verbose=0,
        )
        asking.cut()
    except KeyboardInterrupt:
        with suppress(RaybmError):  # another run has taken over, whose trials they are then
            still()
            asking.cut()
        raise
    finally:
        ray.kill(beats)  # Tune keeps its handle for good
        shutil.rmtree(folder, ignore_errors=True)
    if search.spent:
        search.context.progress(f"sweep: the budget's energy is used up ({search.points.energy_kwh():.3g} kWh)")


def recall(scheduler: Any, search: Search) -> None:
    """Has a scheduler of Tune compare with the trials that were over before this run, too. (One that goes on would be judged by its own
    past.)"""

    class Before:
        def __init__(self, name: str) -> None:
            self.trial_id, self.config = f"before-{name}", {"name": name}

    for known in (trial for point in search.points for trial in point.trials if trial.end is not None):
        trial = Before(known.name)
        scheduler.on_trial_add(None, trial)
        for metrics in known.curve:
            scheduler.on_trial_result(None, trial, metrics)


def _ask(resources: Resources) -> dict[str, float]:
    """What a trial of one worker holds."""
    asked = {"CPU": resources.cpus_per_worker} | ({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {})
    return asked | ({f"accelerator_type:{resources.accelerator_type}": 0.001} if resources.accelerator_type else {})


class Asking(Searcher):
    """Tune's face of a search, with so many trials at a time; `ends`: when its time is over, by the monotonic clock."""

    def __init__(self, search: Search, beats: Any, places: int, ends: float) -> None:
        super().__init__(metric=search.points.first, mode=search.spec.objectives[search.points.first])
        self.search, self.places, self.ends = search, places, ends
        self.running: dict[str, tuple[Point, Trial]] = {}
        self.took: dict[str, float] = {}
        """Seconds of each that runs, as far as it has told."""
        self.watch = Watch(self, beats)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.over_time or self.search.spent:
            return None if self.running else str(Searcher.FINISHED)
        self.watch.regain()
        if len(self.running) >= self.places:
            return None
        following = self.search.next()
        if following is None:
            return None if self.search.more or self.running else str(Searcher.FINISHED)  # what runs may come back
        self.running[trial_id] = following
        trial = following[1]
        job = self.search.trial_job(trial).canonical()
        return {
            "job": job,
            "settled": self.search.spec.of_one_model,
            "name": trial.name,
            "run": self.search.run,
            "until": self.search.until(trial),
            "never_past": self.search.population is not None,
            "cwd": str(Path.cwd()),
        }

    @property
    def over_time(self) -> bool:
        return time.monotonic() >= self.ends

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self.running and TIME in result and not OVER & set(result):
            point, trial = self.running[trial_id]
            self.running[trial_id] = point, self.search.reported(point, trial, _numbers(result))
            self.took[trial_id] = float(result.get("time_total_s", 0.0))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        result = result or {}
        if error or trial_id not in self.running:  # errors: the callback knows why
            return
        if not OVER & set(result) and (self.search.pauses or self.search.spent or self.over_time):
            self._cut(trial_id)
        else:
            reason = str(result.get(ERROR, ""))
            self.over(trial_id, "failed" if reason else FINISHED if FINISHED in result else "stopped", result, reason)

    def cut(self) -> None:
        """Tune tells nothing of trials that it ends with everything."""
        for trial_id in list(self.running):
            self._cut(trial_id)

    def _cut(self, trial_id: str) -> None:
        point, trial = self.running.pop(trial_id)
        self.search.cut(point, trial.model_copy(update={"seconds": round(trial.seconds + self.took.pop(trial_id, 0.0), 2)}))

    def over(self, trial_id: str, end: str, result: Mapping[str, Any], error: str) -> None:
        point, trial = self.running.pop(trial_id)
        self.took.pop(trial_id, None)
        metrics = _numbers(result) or trial.metrics
        seconds = round(trial.seconds + float(result.get("time_total_s", 0.0)), 2)  # before it paused, and since
        self.search.ended(point, trial.model_copy(update={"end": end, "metrics": metrics, "seconds": seconds, "error": error}))

    def again(self, trial_id: str) -> None:
        """Of one that has not begun."""
        point, trial = self.running.pop(trial_id)
        self.search.waiting.insert(0, (point, trial.repeat))

    def save(self, checkpoint_path: str) -> None:
        """Trials are kept in the storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Trials are kept in the storage."""

    def __reduce__(self) -> tuple[Any, ...]:  # Tune pickles it beside its own state, which nobody reads
        return (object, ())


class Spent(Stopper):
    """Ends everything when the budget's energy is used up."""

    def __init__(self, search: Search) -> None:
        self.search = search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.search.spent

    def __reduce__(self) -> tuple[Any, ...]:
        return (object, ())


class Watch(Callback):
    """Why trials died; and the end of those that give no sign of life."""

    def __init__(self, asking: Asking, beats: Any) -> None:
        self.asking, self.beats = asking, beats
        self.looked = time.monotonic()
        self.trials: list[Any] = []
        self.given_up: dict[str, float] = {}
        """Trials that Tune has ended without a word, as where a process does not let go of the one before; since when that is seen."""

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.trials = trials

    def regain(self) -> None:
        """Has trials that were given up begun again; not at once: an end may only not have been told yet."""
        ended = {trial.trial_id for trial in self.trials if trial.is_finished() and trial.trial_id in self.asking.running}
        self.given_up = {trial_id: self.given_up.get(trial_id, time.monotonic()) for trial_id in ended}
        for trial_id, since in self.given_up.items():
            if time.monotonic() - since > HEARTBEAT_S:
                number = self.asking.running[trial_id][1].point
                self.asking.search.context.progress(f"  point {number}: its process could not be used again; it gets another")
                self.asking.again(trial_id)

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
        self.regain()
        begun = {
            self.asking.running[trial.trial_id][1].name: trial
            for trial in trials
            if trial.trial_id in self.asking.running and trial.temporary_state.ray_actor is not None
        }
        try:
            silent = ray.get(self.beats.silent.remote(list(begun)), timeout=BEATS_TIMEOUT_S)
        except RayError as error:
            log.warning("nobody knows which trials give signs of life: %s", error)
            return
        for name in silent:
            trial = begun[name]
            self.asking.search.context.progress(
                f"  point {self.asking.running[trial.trial_id][1].point}: no sign of life; its process is ended"
            )
            if trial.status == trial.PENDING:  # the process does not let go of the trial before, and Tune would have this one failed
                self.asking.again(trial.trial_id)
            ray.kill(trial.temporary_state.ray_actor)  # Tune begins it again, or has it failed
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

    def silent(self, names: Sequence[str]) -> list[str]:
        """Those that have not beaten for the timeout. Who is asked for the first time counts from now: a trial that waits for the process
        of the one before has not begun to beat."""
        now = time.monotonic()
        return [name for name in names if now - self._last.setdefault(name, now) > self._timeout_s]


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """Ours of what a trial reported, not Tune's own."""
    return {name: float(value) for name, value in result.items() if name == TIME or ("." in name and isinstance(value, int | float))}

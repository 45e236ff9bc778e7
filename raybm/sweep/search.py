"""What a sweep tries next, and what became of it; knows nothing of Ray Tune."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from random import Random
from statistics import fmean
from typing import Any

from raybm import runner
from raybm.core.context import Context
from raybm.core.errors import SpecError, UserError
from raybm.core.events import FILE
from raybm.core.lease import Lease
from raybm.core.runs import SWEEP, Run
from raybm.search import Asha, Member, Population
from raybm.search.space import changed
from raybm.search.study import Asked, Study
from raybm.spec.job import JobSpec
from raybm.spec.sweep import TIME
from raybm.spec.train import Phase
from raybm.sweep.before import base, place, prepares
from raybm.sweep.past import known
from raybm.sweep.points import Point, Points, shown
from raybm.sweep.trial import Trial, stored

POINTS = 20
"""That a sampler tries where the spec does not say how many."""
STEPS = "train.steps"


def run(job: JobSpec, run: Run, context: Context, on_ray: Callable[[], AbstractContextManager[Any]], room: Callable[[], int]) -> JobSpec:
    """Search until the budget is used up, and return the job with the best point's values. `room`: how many trials the cluster
    holds at a time, asked once there is one. Raises UserError where no point was finished, Busy where another run searches the same."""
    storage = context.storage.at(place(job, context.storage))
    with Lease(storage, run.id, runner.LEASE_TIMEOUT_S, context.progress, run.stop) as lease:  # else two number their points alike
        return _search(job, run, context, on_ray, room, lease.renew)


def _search(
    job: JobSpec,
    run: Run,
    context: Context,
    on_ray: Callable[[], AbstractContextManager[Any]],
    room: Callable[[], int],
    still: Callable[[], None],
) -> JobSpec:
    from raybm.sweep.page import write
    from raybm.sweep.tuning import tune

    try:
        search = Search(job, context, run.id)
    except ImportError as error:
        raise UserError(f"{error.name} is not installed.", where="sweep.sampler", remedy="Run: pip install 'raybm[sweep]'") from None
    with on_ray():
        if not prepares(search.spec):
            for repeat in range(search.spec.repeats):  # what the trials share is made before them, once
                shared = runner.settled(search.trial_job(Trial(point=0, repeat=repeat, start={})), context.storage)
                runner.run(shared, run, replace(context, job=shared.canonical()), nullcontext, last="prepare")
        try:
            if search.more:
                tune(search, room(), still=still)
        finally:  # also of what was interrupted
            context.run_dir.joinpath("sweep.csv").write_text(search.points.table(search.spec.space), encoding="utf-8")
            context.progress(f"sweep: {write(search, context.run_dir)}")
    winner = search.winner()
    best = search.points.ranked()[0].trials[0]
    search.note(points=len(search.points), repeats=search.spec.repeats, best=best.point)
    for trial in search.points.line(best):  # the report's curves, where this run trained it on this machine
        context.events.take(context.run_dir / "trials" / trial.name / FILE, ("train", "validate", "profile"))
    return winner


def _time(trial: Trial) -> int:
    """Validations that it has had."""
    return int(trial.metrics.get(TIME, 0))


def _score(trial: Trial, metric: str, time: int) -> float | None:
    """At the first validation from this one on; of one that ended before, its last. None: it has not come so far."""
    last = trial.metrics.get(metric) if trial.end == "finished" else None
    return next((at[metric] for at in trial.curve if at[TIME] >= time and metric in at), last)


def _counts(score: float | None) -> bool:
    return score is not None and math.isfinite(score)


class Search:
    """`run`: the name of the run it is part of."""

    def __init__(self, job: JobSpec, context: Context, run: str) -> None:
        assert job.sweep is not None
        self.job, self.spec, self.context, self.run = job, job.sweep, context, run
        self.base = base(job)
        scheduler = self.spec.scheduler
        self.population = scheduler if isinstance(scheduler, Population) else None
        self.rungs = scheduler if isinstance(scheduler, Asha) and scheduler.type == "promotion" else None
        self.where = place(job, context.storage)
        self.storage = context.storage.at(self.where)
        known = stored(self.storage)
        # A population begins with other values than other searches, whose trainings would be past its first exchange; and a search that
        # is begun again does not draw anew what it drew before.
        salt = [self.where.rpartition("/")[2]] * (self.population is not None) + [str(len(known))] * bool(known)
        sampler = self.spec.sampler.build(Random(" ".join([str(job.seed), *salt])).getrandbits(32) if salt else job.seed)
        self.study = Study(self.spec.space, self.base.canonical(), sampler, list(self.spec.objectives.values()))
        self.wanted = self.spec.budget.trials or (None if sampler is None or self.population else POINTS)
        self.points = Points(self.spec.objectives)
        self.waiting: list[tuple[Point, int]] = []
        self.exhausted = False
        self.before: set[str] = set()
        """Names of the trials that were over when this run began."""
        self.begins_with: list[dict[str, Any]] = []
        """Points to try before the sampler is asked."""
        for source in self.spec.warm_start:
            self._know(source)
        self.note()
        self._recall(known)

    def note(self, **facts: int) -> None:
        """Where the trials are; at the end also which of them are this run's, to which another one may add."""
        place = {"storage": self.where}
        self.context.storage.write(f"runs/{self.run}/{SWEEP}", json.dumps(place | facts).encode())

    @property
    def pauses(self) -> bool:
        """Whether trials pause on the way, and not Tune decides which of them go on."""
        return self.population is not None or self.rungs is not None

    @property
    def more(self) -> bool:
        """Whether there may be something left to try."""
        return not self.spent and (bool(self.waiting) or self._new or self._promoted() is not None)

    @property
    def _new(self) -> bool:
        """Whether there may be points that nobody has asked for yet."""
        return not self.exhausted and (self.wanted is None or len(self.points) < self.wanted)

    @property
    def spent(self) -> bool:
        """Whether the budget's energy is used up."""
        limit = self.spec.budget.energy_kwh
        return limit is not None and self.points.energy_kwh() >= limit

    def next(self) -> tuple[Point, Trial] | None:
        """What to try next; None where nothing is left, or (then there may be `more`) what runs has to end first."""
        while self.more and (self.waiting or self._asked()):
            point, repeat = self.waiting.pop(0)
            trial = point.trials[repeat]
            try:
                self.trial_job(trial)
            except SpecError as error:  # values that are right one by one, and wrong together
                self.ended(point, trial.model_copy(update={"end": "failed", "error": str(error)}))
                continue
            self._tell(trial)
            return point, trial
        return None

    def _asked(self) -> bool:
        """Whether there is another point now."""
        if self.population is not None and len(self.points) >= self.population.size:
            return self._followed(self.population)
        if (promoted := self._promoted()) is not None:
            self._resume(promoted)
            return True
        for point in self.points if self.rungs is not None else ():
            if point.end == "stopped" and not point.told:
                self._settle(point)  # so that the sampler knows how it did; it may be promoted later
        asked = self.study.ask(self.begins_with[len(self.points)] if len(self.points) < len(self.begins_with) else None)
        self.exhausted = asked is None
        if asked is not None:
            self._add(asked, {})
        return asked is not None

    def _followed(self, population: Population) -> bool:
        """Add the next member of a population's next generation, where all of the last one are over."""
        size = population.size
        born = len(self.points) % size  # members of a generation that has begun
        over = self.points[: len(self.points) - born]
        last = over[-size:]
        if any(point.end is None for point in last):
            return False
        if all(point.end != "stopped" for point in last):  # trained to the end, or all failed
            self.exhausted = True
            return False
        members: list[Member] = []
        for point in over:
            trial, score = point.trials[0], point.mean(self.points.first) if point.end != "failed" else None
            parent = members[trial.parent - 1] if trial.parent else None
            members.append(Member(trial.point, trial.values, None if score is None else self.points.sign * score, parent))
        generations = [members[first : first + size] for first in range(0, len(members), size)]
        followers = population.following(self.spec.space, generations, Random(f"{self.base.seed} {len(generations)}"))
        number, values = followers[born]
        before = self.points[number - 1].trials[0]
        phases = before.phases
        if values != before.values:
            after = int(before.metrics[STEPS])
            phases = (*phases, Phase(after=after, **{path.removeprefix("train."): value for path, value in values.items()}))
        asked = self.study.ask(values)
        assert asked is not None
        self._add(asked, {}, Trial(point=0, parent=number, start=before.start, phases=phases))
        return True

    def _promoted(self) -> Point | None:
        """The paused point that goes on now."""
        if self.rungs is None:
            return None
        known = {number: self._costs(point) for number, point in enumerate(self.points) if point.end != "failed"}
        paused = {number for number in known if self.points[number].end == "stopped"}
        number = self.rungs.promoted(known, paused, last=not self._new and all(point.end is not None for point in self.points))
        return None if number is None else self.points[number]

    def _costs(self, point: Point) -> dict[int, float]:
        """Validations → cost, the mean over the seeds."""
        known = {}
        for time in {int(at[TIME]) for trial in point.trials for at in trial.curve}:
            values = [_score(trial, self.points.first, time) for trial in point.trials]
            scores = [value for value in values if value is not None]
            if len(scores) == len(values):
                known[time] = self.points.sign * fmean(scores)
        return known

    def _resume(self, point: Point) -> None:
        """Has a paused point's trials go on; those that a run which was ended had brought to the next rung already wait for the others."""
        if point.told:  # the study then has it once for each time that it was told of
            point.asked, point.told = self.study.again(point.asked), False
            for metrics in point.trials[0].curve:
                self._report(point, metrics)
        goal = self._goal(point)
        for repeat, trial in enumerate(point.trials):
            if trial.end == "stopped" and _time(trial) < goal:
                point.trials[repeat] = trial.model_copy(update={"end": None})
                self.waiting.append((point, repeat))
                self.before.discard(trial.name)

    def _goal(self, point: Point) -> int:
        """The rung that the last of a point's trials comes to next."""
        assert self.rungs is not None
        return self.rungs.rung(min(_time(trial) for trial in point.trials if trial.end in (None, "stopped")))

    def until(self, trial: Trial) -> int | None:
        """Validations after which a trial pauses."""
        if self.rungs is not None:
            return self._goal(self.points[trial.point - 1])
        return None if self.population is None else self.population.every * ((trial.point - 1) // self.population.size + 1)

    def trial_job(self, trial: Trial) -> JobSpec:
        return JobSpec.parse(changed(self.base.canonical(), trial.changes) | {"seed": self.base.seed + trial.repeat})

    def reported(self, point: Point, trial: Trial, metrics: dict[str, float]) -> Trial:
        """A validation of a trial that goes on."""
        made = trial.model_copy(update={"curve": (*trial.curve, metrics), "metrics": metrics})
        point.trials[trial.repeat] = made
        self._tell(made)
        self._report(point, metrics)
        return made

    def _tell(self, trial: Trial) -> None:
        """Of one that goes on: what a live table shows."""
        scores = {name: trial.metrics.get(name) for name in self.spec.objectives}
        wanted = self.wanted and self.wanted * self.spec.repeats
        told = {"repeat": trial.repeat, "values": trial.values, "scores": scores, "validations": int(trial.metrics.get(TIME, 0))}
        self.context.events.emit("trying", step=trial.point, of=wanted, before=len(self.before), **told)

    def ended(self, point: Point, trial: Trial) -> None:
        """Note what became of a trial, and of its point with the last of its seeds."""
        known = {name: trial.metrics.get(name) for name in self.spec.objectives}
        lacks = {name: value for name, value in known.items() if not _counts(value)}
        if lacks and (trial.end == "finished" or (trial.end == "stopped" and self.population is not None)):
            wrong = ", ".join(f"no {name} was reported" if value is None else f"{name} is {value}" for name, value in lacks.items())
            trial = trial.model_copy(update={"end": "failed", "error": f"{wrong}."})
        pauses = self.rungs is not None  # perhaps where another had trained so far; and Tune tells no result that it stops a trial by
        if (pauses or trial.end == "stopped") and _time(trial) > max((at[TIME] for at in trial.curve), default=0):
            trial = trial.model_copy(update={"curve": (*trial.curve, trial.metrics)})
            self._report(point, trial.metrics)
        point.trials[trial.repeat] = trial
        self.storage.write(f"{trial.name}.json", json.dumps(trial.canonical()).encode())
        scores = {name: trial.metrics[name] for name in self.spec.objectives if name in trial.metrics}
        told = {"repeat": trial.repeat, "end": trial.end, "values": trial.values, "error": trial.error}
        self.context.events.emit("trial", step=trial.point, **told, **scores)
        if point.end is not None and not (self.rungs is not None and point.end == "stopped"):
            self._settle(point)
        self.context.progress(self._line(trial))

    def cut(self, point: Point, trial: Trial) -> None:
        """Note how far one is that the end of the budget ended: it goes on when the same sweep is begun again. One that has come to its
        rung, and has not said so yet, comes to it once more."""
        if self.rungs is not None and (time := _time(trial)) and self.rungs.rung(time - 1) == time:
            return
        point.trials[trial.repeat] = trial
        self.storage.write(f"{trial.name}.json", json.dumps(trial.canonical()).encode())

    def winner(self) -> JobSpec:
        """The whole job with the values of the best point. Raises UserError where there is none."""
        ranked = self.points.ranked()
        if not ranked:
            reasons = sorted({trial.error for point in self.points for trial in point.trials if trial.error})
            what = " ".join([f"no trial of {len(self.points)} points was finished.", *reasons[:3]])
            raise UserError(what, where="sweep", remedy="Mend what the trials say, or raise sweep.budget.")
        best = ranked[0].trials[0]
        self.context.progress(f"sweep: the best of {len(self.points)} points is {best.point}: {self._values(best)}")
        if len(self.spec.objectives) > 1:
            on_front = ", ".join(str(point.trials[0].point) for point in self.points.front())
            self.context.progress(f"sweep: beaten by none in everything (`front` in sweep.csv): points {on_front}")
        found = JobSpec.parse(changed(self.job.model_copy(update={"sweep": None}).canonical(), best.changes))
        return runner.settled(found, self.context.storage)

    def _know(self, source: str) -> None:
        """Raises NotFound where there is no such run or version, and UserError where it knows nothing of this search."""
        found = inside = 0
        for values, scores in known(self.context.storage, source, list(self.spec.space), list(self.spec.objectives)):
            found += 1
            if (point := self.study.inside(values)) is None:
                continue
            inside += 1
            if scores is None:
                self.begins_with.append(point)
            else:
                self.study.learn(point, scores)
        if not inside:
            metrics = ", ".join(self.spec.objectives)
            lacks = f"none of its {found} points lies in the space." if found else f"it has no finished trial with {metrics}."
            remedy = "Drop it, or widen the space." if found else "Drop it, or name a run that was searched for the same."
            raise UserError(lacks, where=f"sweep.warm_start: {source}", remedy=remedy)
        self.context.progress(f"sweep: {inside} points are known by {source}" + (f", {found - inside} lie elsewhere" * (inside < found)))

    def _recall(self, known: Mapping[int, list[Trial]]) -> None:
        """What an earlier run of the same sweep left: what is over is told to the study, the rest is begun with."""
        for number in sorted(known)[: self.wanted]:
            trials = {trial.repeat: trial for trial in known[number]}
            first = known[number][0]
            asked = self.study.ask(first.values)
            assert asked is not None
            self._add(asked, trials, first)
        self.before = {trial.name for point in self.points for trial in point.trials if trial.end is not None}
        if known:
            paused = sum(point.end == "stopped" for point in self.points) if self.rungs is not None else 0
            over = sum(point.end is not None for point in self.points) - paused
            may = f", {paused} may yet" * bool(paused)
            self.context.progress(f"sweep: {over} points are done already, {len(self.points) - over - paused} go on{may}")

    def _add(self, asked: Asked, known: dict[int, Trial], like: Trial | None = None) -> None:
        """A point, with the trials that are `known` by their seeds; others are as `like`."""
        point = Point(asked)
        self.points.append(point)
        like = like or Trial(point=0, start=asked.point)
        fresh = Trial(point=len(self.points), parent=like.parent, start=like.start, phases=like.phases)
        for repeat in range(self.spec.repeats):
            trial = known.get(repeat) or fresh.model_copy(update={"repeat": repeat})
            trial = trial.model_copy(update={"point": len(self.points)})
            point.trials.append(trial)
            if repeat not in known:
                self.storage.write(f"{trial.name}.json", json.dumps(trial.canonical()).encode())
            if trial.end is None:
                self.waiting.append((point, repeat))
            for metrics in trial.curve if trial.end == "stopped" else ():
                self._report(point, metrics)
        if point.end is not None:
            self._settle(point)

    def _report(self, point: Point, metrics: dict[str, float]) -> None:
        if len(self.spec.objectives) == 1 and self.spec.repeats == 1 and (value := metrics.get(self.points.first)) is not None:
            self.study.report(point.asked, value, int(metrics[TIME]))

    def _settle(self, point: Point) -> None:
        means = [point.mean(name) for name in self.spec.objectives]
        values = [value for value in means if value is not None]
        assert point.end is not None
        if point.end == "stopped" and self.spec.repeats > 1:  # else they were reported one by one
            for time, cost in sorted(self._costs(point).items()):
                self.study.report(point.asked, self.points.sign * cost, time)
        self.study.tell(point.asked, point.end, values)
        point.told = True

    def _line(self, trial: Trial) -> str:
        """What became of a trial, beside the best."""
        of = f" of {self.wanted}" if self.wanted else ""
        seed = f", seed {trial.repeat + 1} of {self.spec.repeats}" if self.spec.repeats > 1 else ""
        told = trial.error if trial.end == "failed" else ", ".join(shown(name, trial.metrics.get(name)) for name in self.spec.objectives)
        ranked = self.points.ranked()
        first = self.points.first
        best = f" (best: {shown(first, ranked[0].mean(first))}, point {ranked[0].trials[0].point})" if ranked else ""
        end = "paused" if self.pauses and trial.end == "stopped" else trial.end
        return f"  point {trial.point}{of}{seed} {end}: {self._values(trial)}: {told}{best}"

    def _values(self, trial: Trial) -> str:
        return ", ".join(f"{path} {value:.4g}" if isinstance(value, float) else f"{path} {value}" for path, value in trial.values.items())

"""The points of a sweep and what became of them; knows nothing of Ray Tune."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from raybm import runner
from raybm.core.context import Context
from raybm.core.errors import Problem, SpecError, UserError
from raybm.core.runs import Run
from raybm.core.spec import Spec
from raybm.search.space import changed, probes
from raybm.search.study import Asked, End, Study
from raybm.spec.job import JobSpec
from raybm.spec.sweep import TIME

POINTS = 20
"""That a sampler tries where the spec does not say how many."""
PREPARES = ("task", "data", "model")
"""Sections that prepared rows depend on."""


class Trial(Spec):
    """One point with one seed, as it stands in the storage."""

    point: int
    """From 1."""
    repeat: int = 0
    """From 0; added to the job's seed."""
    values: dict[str, Any]
    """Path of a field → value."""
    end: End | None = None
    """None while it is not over."""
    metrics: dict[str, float] = {}
    """The last ones."""
    curve: tuple[dict[str, float], ...] = ()
    """What was known at each validation."""
    seconds: float = 0.0
    error: str = ""

    @property
    def name(self) -> str:
        return f"{self.point:05}-{self.repeat}"


@dataclass
class Point:
    asked: Asked
    trials: list[Trial] = field(default_factory=list)
    """One a seed."""

    @property
    def end(self) -> End | None:
        """None while a trial is not over; else the worst."""
        ends = [trial.end for trial in self.trials]
        return None if None in ends else next((end for end in ("failed", "stopped") if end in ends), "finished")

    def mean(self, metric: str) -> float | None:
        """Over the seeds; None where one of them lacks it."""
        values = [trial.metrics.get(metric) for trial in self.trials]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if len(known) == len(values) else None


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


def run(job: JobSpec, run: Run, context: Context, on_ray: Callable[[], AbstractContextManager[Any]]) -> JobSpec:
    """Search until the budget is used up, and return the job with the best point's values. Raises UserError where no point was
    finished."""
    from raybm.sweep.page import write
    from raybm.sweep.tuning import tune

    try:
        search = Search(job, context, run.id)
    except ImportError as error:
        raise UserError(f"{error.name} is not installed.", where="sweep.sampler", remedy="Run: pip install 'raybm[sweep]'") from None
    with on_ray():
        if not any(path.split(".")[0] in PREPARES for path in search.spec.space):
            for repeat in range(search.spec.repeats):  # what the trials share is made before them, once
                shared = search.trial_job(Trial(point=0, repeat=repeat, values={}))
                runner.run(shared, run, replace(context, job=shared.canonical()), nullcontext, last="prepare")
        try:
            if search.more:
                tune(search)
        finally:  # also of what was interrupted
            context.run_dir.joinpath("sweep.csv").write_text(search.table(), encoding="utf-8")
            context.progress(f"sweep: {write(search, context.run_dir)}")
    return search.winner()


class Search:
    """`run`: the name of the run it is part of."""

    def __init__(self, job: JobSpec, context: Context, run: str) -> None:
        assert job.sweep is not None
        self.job, self.spec, self.context, self.run = job, job.sweep, context, run
        evaluates = any(name.startswith("evaluate.") for name in self.spec.objectives)
        self.base = job.model_copy(update={"sweep": None, "publish": None} | ({} if evaluates else {"evaluate": None}))
        sampler = self.spec.sampler.build(job.seed)
        self.study = Study(self.spec.space, self.base.canonical(), sampler, list(self.spec.objectives.values()))
        self.wanted = self.spec.budget.trials or (None if sampler is None else POINTS)
        self.points: list[Point] = []
        self.waiting: list[tuple[Point, int]] = []
        self.exhausted = False
        self.storage = context.storage.at(f"sweeps/{self._key()}")
        self._recall()

    @property
    def more(self) -> bool:
        """Whether there may be something left to try."""
        return bool(self.waiting) or (not self.exhausted and (self.wanted is None or len(self.points) < self.wanted))

    def next(self) -> tuple[Point, Trial] | None:
        """What to try next; None where nothing is left."""
        while self.more:
            if not self.waiting:
                asked = self.study.ask()
                if asked is None:
                    self.exhausted = True
                    return None
                self._add(asked, {})
                continue
            point, repeat = self.waiting.pop(0)
            trial = point.trials[repeat]
            try:
                self.trial_job(trial)
            except SpecError as error:  # values that are right one by one, and wrong together
                self.ended(point, trial.model_copy(update={"end": "failed", "error": str(error)}))
                continue
            return point, trial
        return None

    def trial_job(self, trial: Trial) -> JobSpec:
        return JobSpec.parse(changed(self.base.canonical(), trial.values) | {"seed": self.base.seed + trial.repeat})

    def reported(self, point: Point, trial: Trial, metrics: dict[str, float]) -> Trial:
        """A validation of a trial that goes on."""
        made = trial.model_copy(update={"curve": (*trial.curve, metrics), "metrics": metrics})
        point.trials[trial.repeat] = made
        if len(self.spec.objectives) == 1 and self.spec.repeats == 1 and (value := metrics.get(self.first)) is not None:
            self.study.report(point.asked, value, int(metrics[TIME]))
        return made

    def ended(self, point: Point, trial: Trial) -> None:
        """Note what became of a trial, and of its point with the last of its seeds."""
        if trial.end == "finished" and (lacks := [name for name in self.spec.objectives if name not in trial.metrics]):
            trial = trial.model_copy(update={"end": "failed", "error": f"no {', '.join(lacks)} was reported."})
        point.trials[trial.repeat] = trial
        self.storage.write(f"{trial.name}.json", json.dumps(trial.canonical()).encode())
        scores = {name: trial.metrics[name] for name in self.spec.objectives if name in trial.metrics}
        fields = trial.canonical()
        self.context.events.emit(
            "trial", step=trial.point, **{name: fields[name] for name in ("repeat", "end", "values", "error")}, **scores
        )
        if point.end is not None:
            self._settle(point)
        self.context.progress(self._line(trial))

    @property
    def first(self) -> str:
        """The objective that the best point is best in."""
        return next(iter(self.spec.objectives))

    def ranked(self) -> list[Point]:
        """The finished points, the best one first."""
        sign = 1 if self.spec.objectives[self.first] == "min" else -1
        return sorted((point for point in self.points if point.end == "finished"), key=lambda point: sign * (point.mean(self.first) or 0.0))

    def front(self) -> list[Point]:
        """The finished points that no other one beats in an objective without being beaten in another (the Pareto front)."""
        signs = [1 if mode == "min" else -1 for mode in self.spec.objectives.values()]
        finished = self.ranked()
        costs = [[sign * (point.mean(name) or 0.0) for sign, name in zip(signs, self.spec.objectives, strict=True)] for point in finished]

        def beaten(own: list[float]) -> bool:
            return any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in costs)

        return [point for point, own in zip(finished, costs, strict=True) if not beaten(own)]

    def winner(self) -> JobSpec:
        """The whole job with the values of the best point. Raises UserError where there is none."""
        ranked = self.ranked()
        if not ranked:
            reasons = sorted({trial.error for point in self.points for trial in point.trials if trial.error})
            what = " ".join([f"no trial of {len(self.points)} points was finished.", *reasons[:3]])
            raise UserError(what, where="sweep", remedy="Mend what the trials say, or raise sweep.budget.")
        best = ranked[0].trials[0]
        self.context.progress(f"sweep: the best of {len(self.points)} points is {best.point}: {self._values(best)}")
        if len(self.spec.objectives) > 1:
            on_front = ", ".join(str(point.trials[0].point) for point in self.front())
            self.context.progress(f"sweep: beaten by none in everything (`front` in sweep.csv): points {on_front}")
        return JobSpec.parse(changed(self.job.model_copy(update={"sweep": None}).canonical(), best.values))

    def table(self) -> str:
        """sweep.csv: a row a trial; `front` says whether its point is on the Pareto front."""
        front = {point.trials[0].point for point in self.front()}
        trials = [trial for point in self.points for trial in point.trials]
        metrics = sorted({name for trial in trials for name in trial.metrics})
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(["point", "repeat", "end", "front", *self.spec.space, *metrics, "seconds", "error"])
        for trial in trials:
            values = [json.dumps(trial.values[path]) if path in trial.values else "" for path in self.spec.space]
            scores = [trial.metrics.get(name, "") for name in metrics]
            rows.writerow(
                [trial.point, trial.repeat, trial.end or "", int(trial.point in front), *values, *scores, trial.seconds, trial.error]
            )
        return text.getvalue()

    def _key(self) -> str:
        """Of everything that decides what is tried and what comes of it, the data and raybm's own code among them; not of how much."""
        spec = self.spec.canonical()
        content = {name: spec[name] for name in ("space", "sampler", "scheduler", "objectives")}
        content["artifacts"] = [step.out.key for step in runner.steps(self.base, self.context.storage)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]

    def _recall(self) -> None:
        """What an earlier run of the same sweep left: what is over is told to the study, the rest is begun with."""
        known: dict[int, dict[int, Trial]] = {}
        for trial in self._stored():
            known.setdefault(trial.point, {})[trial.repeat] = trial
        for number in sorted(known)[: self.wanted]:
            trials = known[number]
            asked = self.study.ask(next(iter(trials.values())).values)
            assert asked is not None
            self._add(asked, trials)
        if known:
            over = sum(point.end is not None for point in self.points)
            self.context.progress(f"sweep: {over} points are done already, {len(self.points) - over} go on")

    def _stored(self) -> Iterator[Trial]:
        for key in self.storage.keys(""):
            yield Trial.parse(json.loads(self.storage.read(key)), key)

    def _add(self, asked: Asked, known: dict[int, Trial]) -> None:
        point = Point(asked)
        self.points.append(point)
        for repeat in range(self.spec.repeats):
            trial = known.get(repeat) or Trial(point=len(self.points), repeat=repeat, values=asked.point)
            trial = trial.model_copy(update={"point": len(self.points)})
            point.trials.append(trial)
            if repeat not in known:
                self.storage.write(f"{trial.name}.json", json.dumps(trial.canonical()).encode())
            if trial.end is None:
                self.waiting.append((point, repeat))
        if point.end is not None:
            self._settle(point)

    def _settle(self, point: Point) -> None:
        means = [point.mean(name) for name in self.spec.objectives]
        values = [value for value in means if value is not None]
        assert point.end is not None
        self.study.tell(point.asked, point.end, values)

    def _line(self, trial: Trial) -> str:
        """What became of a trial, beside the best."""
        of = f" of {self.wanted}" if self.wanted else ""
        seed = f", seed {trial.repeat + 1} of {self.spec.repeats}" if self.spec.repeats > 1 else ""
        told = trial.error if trial.end == "failed" else ", ".join(_shown(name, trial.metrics.get(name)) for name in self.spec.objectives)
        ranked = self.ranked()
        best = f" (best: {_shown(self.first, ranked[0].mean(self.first))}, point {ranked[0].trials[0].point})" if ranked else ""
        return f"  point {trial.point}{of}{seed} {trial.end}: {self._values(trial)}: {told}{best}"

    def _values(self, trial: Trial) -> str:
        return ", ".join(f"{path} {value:.4g}" if isinstance(value, float) else f"{path} {value}" for path, value in trial.values.items())


def _shown(name: str, value: float | None) -> str:
    return f"{name} {'unknown' if value is None else f'{value:.4g}'}"

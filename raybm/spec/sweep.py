"""The `sweep` section: a search over any fields of the job."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from raybm.core.spec import Check, Spec
from raybm.search import Asha, Dimension, Population, SamplerSpec, SchedulerSpec, SpaceSpec
from raybm.search.tpe import Tpe
from raybm.spec.train import CHANGING

GRID_MAX = 1_000_000
TIME = "validations"
"""What trials are compared at: how often they have been validated."""
VALIDATED = ("validation.loss", "validation.accuracy")
"""What is known while a trial goes on."""
SEARCHED = ("task", "model", "data", "train")
"""Sections whose fields decide how good a model is."""
ENERGY = "train.energy_kwh"
TRAINED = (
    "train.train_loss",
    "train.tokens_per_s",
    "train.seconds",
    "train.tokens",
    "train.steps",
    "train.mfu",
    "train.profile.peak",
    ENERGY,
)


class Budget(Spec):
    """Where the sweep ends."""

    trials: PositiveInt | None = None
    """Points that are tried. Default: every combination of a grid, 20 of other samplers."""
    hours: PositiveFloat | None = None
    """After so long no trial is begun, and those that run are stopped."""
    energy_kwh: PositiveFloat | None = None
    """That all trials' training may take (`train.energy`); then those that run are stopped."""


def _source(source: str) -> str:
    scheme, colon, rest = source.partition(":")
    if (colon and (scheme != "registry" or "@" not in rest)) or "/" in source:
        raise ValueError("should be the name of a run, or registry:name@alias-or-version")
    return source


class SweepSpec(Spec):
    """Many trials of the job, each with other values of some fields; the best one's go on through evaluate and publish."""

    space: SpaceSpec
    """Path of a field → its values: `{loguniform: [1e-5, 1e-3]}`, `{choice: [4, 8]}`, `{uniform: [0, 0.1]}`, `{randint: [1, 4]}`,
    `{normal: [0, 1]}`, or a list. Later fields can depend on earlier ones (`when`)."""
    sampler: SamplerSpec = Tpe()
    """What proposes the points."""
    scheduler: SchedulerSpec | None = None
    """What stops trials that do badly, or (pbt, pb2) changes their values on the way."""
    objectives: Annotated[dict[str, Literal["min", "max"]], Field(min_length=1)] = {"validation.loss": "min"}
    """What the best is best in: `validation.loss`, `validation.accuracy`, `train.…` (such as train.seconds), or a score of the test split,
    `evaluate.…`. Of several, those points are kept that no other beats in all; the job goes on with the one that is best in the first (of
    those that are alike there, in the next)."""
    warm_start: tuple[Annotated[str, AfterValidator(_source)], ...] = ()
    """What is known before the first trial: names of runs whose sweeps' finished trials the sampler (tpe, gp) learns from, as far as they
    lie in the space and have the objectives; registry:name@alias-or-version, the values of whose job are tried first."""
    repeats: PositiveInt = 1
    """Trials of each point, with seeds that count up from the job's; its value is their mean."""
    budget: Budget = Budget()
    concurrent: PositiveInt | None = None
    """Trials at a time. Default: as many as the nodes hold that are there when it begins."""
    max_failures: NonNegativeInt = 1
    """Times that a trial which died is begun again before it counts as failed."""

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(("scheduler", "objectives"), lambda scheduler, objectives: _scheduled(scheduler, objectives)),
        Check(
            ("sampler", "objectives"),
            lambda sampler, objectives: (
                ("cma_es goes by one objective.", "Name one, or take tpe.") if sampler.kind == "cma_es" and len(objectives) > 1 else None
            ),
        ),
        Check(("sampler", "space"), lambda sampler, space: _listed(sampler, space)),
        Check(("space", "scheduler"), lambda space, scheduler: _populated(space, scheduler)),
        Check(
            ("repeats", "scheduler"),
            lambda repeats, scheduler: (
                ("the members of a population are one trial each.", "Drop it.")
                if repeats > 1 and isinstance(scheduler, Population)
                else None
            ),
        ),
        Check(
            ("repeats", "scheduler"),
            lambda repeats, scheduler: (
                (f"{scheduler.kind} would stop the seeds of a point one by one.", "Use asha with `type: promotion`, or drop repeats.")
                if repeats > 1 and scheduler is not None and not isinstance(scheduler, Population) and not _promotes(scheduler)
                else None
            ),
        ),
        Check(
            ("sampler", "scheduler"),
            lambda sampler, scheduler: (
                (f"{sampler.kind} does not learn from points that pause.", "Use tpe, or another scheduler.")
                if sampler.kind in ("cma_es", "gp") and _promotes(scheduler)
                else None
            ),
        ),
        Check(
            ("budget.trials", "scheduler"),
            lambda trials, scheduler: (
                ("a population goes by its size, and until its members are trained.", "Drop it, and set scheduler.size.")
                if trials and isinstance(scheduler, Population)
                else None
            ),
        ),
        Check(
            ("sampler", "scheduler"),
            lambda sampler, scheduler: (
                ("a grid is no way to begin a population.", "Use random.")
                if sampler.kind == "grid" and isinstance(scheduler, Population)
                else None
            ),
        ),
        Check(("warm_start", "sampler"), lambda sources, sampler: _known(sources, sampler)),
        Check(("space",), lambda space: _fields(space) or _conditions(space)),
    )

    def changes(self, *fields: str) -> bool:
        """Whether trials differ in one of these fields of the job: in itself, in what is in it, or in what it is in."""
        return any(f"{path}.".startswith(f"{field}.") or f"{field}.".startswith(f"{path}.") for path in self.space for field in fields)

    @property
    def of_one_model(self) -> bool:
        """Whether what was found of the job's model holds for each trial's."""
        return not self.changes("task", "model", "train.gradient_checkpointing")


def _promotes(scheduler: SchedulerSpec | None) -> bool:
    return isinstance(scheduler, Asha) and scheduler.type == "promotion"


def _scheduled(scheduler: SchedulerSpec | None, objectives: dict[str, str]) -> tuple[str, str] | None:
    if scheduler is None or (len(objectives) == 1 and next(iter(objectives)) in VALIDATED):
        return None
    return f"{scheduler.kind} needs one objective that is known on the way.", f"Use {' or '.join(VALIDATED)}, or drop the scheduler."


def _populated(space: dict[str, Dimension], scheduler: SchedulerSpec | None) -> tuple[str, str] | None:
    """Whether a population can change the fields on the way."""
    if not isinstance(scheduler, Population):
        return None
    fixed = [name for name in space if name not in [f"train.{field}" for field in CHANGING]]
    if fixed:
        return f"{', '.join(fixed)} cannot change while a model trains.", f"There are train.{', train.'.join(CHANGING)}."
    if conditional := [name for name, dimension in space.items() if dimension.when]:
        return f"{', '.join(conditional)} depends on others.", f"{scheduler.kind} takes no `when`."
    if scheduler.kind == "pb2" and (chosen := [name for name, dimension in space.items() if dimension.choice]):
        return f"{', '.join(chosen)} is a choice.", "pb2 is for ranges; take pbt."
    return None


def _listed(sampler: SamplerSpec, space: dict[str, Dimension]) -> tuple[str, str] | None:
    endless = [name for name, dimension in space.items() if dimension.values() is None]
    if sampler.kind == "grid" and endless:
        return f"a grid cannot list the values of {', '.join(endless)}.", "Give lists, or use another sampler."
    size = math.prod(len(dimension.values() or ()) for dimension in space.values())
    if sampler.kind == "grid" and size > GRID_MAX:
        return f"a grid of {size:,} points.", f"Give fewer values ({GRID_MAX:,} points are the most), or use another sampler."
    return None


def _known(sources: tuple[str, ...], sampler: SamplerSpec) -> tuple[str, str] | None:
    if sources and sampler.kind == "grid":
        return "a grid tries all its points anyway.", "Drop it, or use another sampler."
    runs = [source for source in sources if ":" not in source]
    if runs and not sampler.LEARNS:
        return f"{sampler.kind} learns nothing from the trials of {', '.join(runs)}.", "Use tpe or gp."
    return None


def _fields(space: dict[str, Dimension]) -> tuple[str, str] | None:
    wrong = [name for name in space if name.split(".")[0] not in SEARCHED]
    return (f"{', '.join(wrong)} is nothing to search over.", f"There are fields of {', '.join(SEARCHED)}.") if wrong else None


def _conditions(space: dict[str, Dimension]) -> tuple[str, str] | None:
    names = list(space)
    for place, (name, dimension) in enumerate(space.items()):
        if [] in dimension.when.values():
            return f"{name} wants one of no values.", "Name some in `when`."
        later = [path for path in dimension.when if path in names[place:]]
        if later:
            return f"{name} depends on {', '.join(later)}, which stands below it.", "Put what is depended on first."
    return None

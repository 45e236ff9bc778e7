"""sweep.html: what was tried, what came of it, and what mattered, on one page."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Any

from markupsafe import Markup

from raybm.charts import Axis, Dot, Line, Series, line_chart, parallel, scatter
from raybm.pages import number, template
from raybm.spec.sweep import TIME
from raybm.sweep.points import Point
from raybm.sweep.search import Search

FILE = "sweep.html"
CURVES = 40
"""Trials whose learning curves are drawn, the best ones."""


def write(search: Search, folder: Path) -> Path:
    ranked = search.points.ranked()
    trials = [trial for point in search.points for trial in point.trials]
    best = None
    if ranked:
        first = ranked[0].trials[0]
        score = {"score": ranked[0].mean(search.points.first), "spread": ranked[0].spread(search.points.first)}
        best = {"number": first.point, "values": first.values, "finished": len(ranked)} | score
    page = template("sweep.html.j2").render(
        name=search.job.name,
        run=search.run,
        sampler=search.spec.sampler.kind,
        scheduler=search.spec.scheduler.kind if search.spec.scheduler else None,
        objectives=search.spec.objectives,
        first=search.points.first,
        ends=dict(Counter(trial.end or "not over" for trial in trials)),
        best=best,
        parallel=None if search.population else _parallel(search, ranked),
        charts=[chart for chart in (_progress(search), _curves(search, ranked), *_fronts(search)) if chart],
        slices=[] if search.population else [chart for path in search.spec.space if (chart := _slice(search, ranked, path))],
        schedules=[chart for path in search.spec.space if (chart := _schedule(search, ranked, path))] if search.population else [],
        importance=search.study.importance() if ranked and not search.population else {},
        paths=list(search.spec.space),
        means=ranked if search.spec.repeats > 1 else [],
        repeats=search.spec.repeats > 1,
        trials=trials,
    )
    target = folder / FILE
    target.write_text(page, encoding="utf-8")
    return target


def _score(search: Search, point: Point) -> float:
    value = point.mean(search.points.first)
    assert value is not None
    return value


def _progress(search: Search) -> Markup | None:
    """The best so far after each finished point, by what the trials of all points up to it took."""
    hours = accumulate(sum(trial.seconds for trial in point.trials) / 3600 for point in search.points)
    over = [(taken, _score(search, point)) for taken, point in zip(hours, search.points, strict=True) if point.end == "finished"]
    pick = min if search.spec.objectives[search.points.first] == "min" else max
    so_far = accumulate((value for _, value in over), pick)
    steps = [(taken, value) for (taken, _), value in zip(over, so_far, strict=True)]
    return line_chart(f"Best {search.points.first} by hours of all trials together", [Series("best so far", steps, 1)], number)


def _curves(search: Search, ranked: list[Point]) -> Markup | None:
    """Of single trials over validations: the best one's in the second colour."""
    others = [point for point in search.points if point not in ranked] if search.population is None else []
    points = [*ranked, *others][:CURVES]
    series = []
    for place, point in reversed(list(enumerate(points))):
        for trial in point.trials:
            curve = [each for ancestor in search.points.line(trial) for each in ancestor.curve]
            found = [(each[TIME], each[search.points.first]) for each in curve if search.points.first in each]
            series.append(Series(f"point {trial.point}", found, 2 if place == 0 and ranked else 1))
    return line_chart(f"{search.points.first} by validations", series, number, legend=False)


def _schedule(search: Search, ranked: list[Point], path: str) -> Markup | None:
    """A field of a population over validations: of those who came to the end, the best one's in the second colour."""
    assert search.population is not None
    series = []
    for place, point in reversed(list(enumerate(ranked))):
        trial = point.trials[0]
        steps = []
        for generation, ancestor in enumerate(search.points.line(trial)):
            value = float(ancestor.values[path])
            steps += [(float(at * search.population.every), value) for at in (generation, generation + 1)]
        series.append(Series(f"point {trial.point}", steps, 2 if place == 0 else 1))
    return line_chart(f"{path} by validations", series, number, legend=False)


def _fronts(search: Search) -> list[Markup | None]:
    """The first objective with each other one."""
    across, *others = search.spec.objectives
    front = search.points.front() if others else []
    charts = []
    for up in others:
        dots = [
            Dot(x, y, f"point {point.trials[0].point}", 2 if point in front else 1)
            for point in search.points.ranked()
            if (x := point.mean(across)) is not None and (y := point.mean(up)) is not None
        ]
        charts.append(scatter(f"{across} and {up}, the front in the second colour", dots, across, up))
    return charts


def _slice(search: Search, ranked: list[Point], path: str) -> Markup | None:
    dimension, values = search.spec.space[path], [(point, point.trials[0].values) for point in ranked]
    listed = [json.dumps(value) for value in dimension.choice or ()]
    dots = [
        Dot(
            float(listed.index(json.dumps(own[path])) if dimension.choice else own[path]),
            _score(search, point),
            f"point {point.trials[0].point}: {own[path]}",
            2 if point is ranked[0] else 1,
        )
        for point, own in values
        if path in own  # else it did not apply
    ]
    names = listed if dimension.choice else ()
    return scatter(path, dots, path, search.points.first, log=dimension.loguniform is not None, names=names)


def _parallel(search: Search, ranked: list[Point]) -> Markup | None:
    """An axis a field and one for the first objective."""
    scores = [_score(search, point) for point in ranked]
    axes, shares = [], []
    for path, dimension in search.spec.space.items():
        values = [point.trials[0].values for point in ranked]
        if dimension.choice:
            listed = [json.dumps(value) for value in dimension.choice]
            places = [listed.index(json.dumps(own[path])) / max(1, len(listed) - 1) if path in own else None for own in values]
            axes.append(Axis(path, listed[0], listed[-1] if len(listed) > 1 else ""))
        else:
            places, bottom, top = _scaled([own.get(path) for own in values], dimension.loguniform is not None)
            axes.append(Axis(path, bottom, top))
        shares.append(places)
    places, bottom, top = _scaled(scores, False)
    axes.append(Axis(search.points.first, bottom, top))
    shares.append(places)
    lines = [
        Line(
            [places[rank] for places in shares], f"point {point.trials[0].point}", 1 - rank / max(1, len(ranked) - 1), 2 if rank == 0 else 1
        )
        for rank, point in enumerate(ranked)
    ]
    return parallel("Values and what came of them", axes, lines)


def _scaled(values: list[Any], log: bool) -> tuple[list[float | None], str, str]:
    """Each value's share of the way from the lowest to the highest, and these two."""
    numbers = [None if value is None else math.log(value) if log else float(value) for value in values]
    known = [each for each in numbers if each is not None]
    if not known:
        return list(numbers), "", ""
    low, high = min(known), max(known)
    shares = [None if each is None else (each - low) / ((high - low) or 1) for each in numbers]
    return shares, *(number(math.exp(end) if log else end) for end in (low, high))  # type: ignore[return-value]

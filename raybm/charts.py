"""Charts as inline SVG: they follow the page's colours and fonts, need no script and stay sharp."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup, escape

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 26
MAX_POINTS = 200  # a series; longer ones are thinned evenly
MARKED = 24  # series with so few points get dots

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[Point]
    colour: int = 1
    """Which of the page's series colours, from 1."""


def line_chart(
    title: str, series: Sequence[Series], show: Callable[[float], str], from_zero: bool = False, legend: bool = True
) -> Markup | None:
    """Over steps, from 0. A figure with a caption, and a legend where there are several series. `show` words a value; `from_zero`
    begins the vertical axis at 0 too (rates). None where no series has a finite point."""
    drawn = [Series(each.name, _thin([p for p in each.points if math.isfinite(p[1])]), each.colour) for each in series]
    drawn = [each for each in drawn if each.points]
    if not drawn:
        return None
    xs, ys = ([point[axis] for each in drawn for point in each.points] for axis in (0, 1))
    flat = min(ys) == max(ys)
    x_ticks, y_ticks = ticks(0, max(xs), 5), ticks(min(0.0, *ys) if from_zero or flat else min(ys), max(ys), 5)
    right, low, high = max(xs) or 1, min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def x(value: float) -> float:
        return round(LEFT + value / right * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 3.5}" text-anchor="end">{tick:,.10g}</text>'
        for tick in y_ticks
    ]
    parts += [
        f'<text class="tick" x="{x(tick)}" y="{HEIGHT - 8}" text-anchor="{"end" if x(tick) > WIDTH - 30 else "middle"}">{tick:,.10g}</text>'
        for tick in x_ticks
        if tick <= right
    ]
    for each in drawn:
        path = " ".join(f"{x(px)},{y(py)}" for px, py in each.points)
        parts.append(f'<polyline class="line s{each.colour}" points="{path}"/>')
        if len(each.points) <= MARKED:
            parts += [f'<circle class="dot s{each.colour}" cx="{x(px)}" cy="{y(py)}" r="2.6"/>' for px, py in each.points]
        parts += [
            f'<circle class="hover" cx="{x(px)}" cy="{y(py)}" r="6">'
            f"<title>{escape(each.name)}: {escape(show(py))} at {px:,.10g}</title></circle>"
            for px, py in each.points
        ]
    names = drawn if legend and len(drawn) > 1 else []
    beside = "".join(f'<span class="legend s{each.colour}">{escape(each.name)}</span>' for each in names)
    summary = ", ".join(f"{each.name} from {show(each.points[0][1])} to {show(each.points[-1][1])}" for each in drawn)
    return Markup(  # noqa: S704  (every name and number above is escaped)
        f"<figure><figcaption><b>{escape(title)}</b>{beside}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {escape(summary)}">{"".join(parts)}</svg></figure>'
    )


def scatter(title: str, dots: Sequence[Dot], across: str, up: str, log: bool = False, names: Sequence[str] = ()) -> Markup | None:
    """A dot a thing; `log` for the horizontal axis, or `names` of what stands at 0, 1, … there. None where there is no dot."""
    shown = [dot for dot in dots if math.isfinite(dot.x) and math.isfinite(dot.y) and (dot.x > 0 or not log)]
    if not shown:
        return None
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    xs, ys = [math.log10(dot.x) if log else dot.x for dot in shown], [dot.y for dot in shown]
    y_ticks = ticks(min(ys), max(ys), 5)
    low, high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * height, 1)

    def x(value: float) -> float:
        return round(LEFT + (value - min(xs)) / ((max(xs) - min(xs)) or 1) * width, 1)

    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 3.5}" text-anchor="end">{tick:,.10g}</text>'
        for tick in y_ticks
    ]
    places, anchors = sorted({int(at) for at in xs}) if names else [min(xs), max(xs)], {max(xs): "end", min(xs): "start"}
    parts += [
        f'<text class="tick" x="{x(at)}" y="{HEIGHT - 8}" text-anchor="{anchors.get(at, "middle")}">'
        f"{escape(names[int(at)]) if names else f'{10**at if log else at:.3g}'}</text>"
        for at in dict.fromkeys(places)
    ]
    parts += [
        f'<circle class="dot s{dot.colour}" cx="{x(at)}" cy="{y(dot.y)}" r="4"><title>{escape(dot.name)}</title></circle>'
        for dot, at in zip(shown, xs, strict=True)
    ]
    return _figure(title, f"{up} up" if across == title else f"{across} across, {up} up", parts)


def parallel(title: str, axes: Sequence[Axis], lines: Sequence[Line]) -> Markup | None:
    """Parallel coordinates: an axis a name, a line a thing. None without lines."""
    if not lines or len(axes) < 2:
        return None
    gap, height = (WIDTH * 2 - LEFT - 2 * RIGHT) / (len(axes) - 1), HEIGHT - TOP - BOTTOM

    def place_of(axis: float, share: float) -> str:
        return f"{round(LEFT + axis * gap, 1)},{round(HEIGHT - BOTTOM - share * height, 1)}"

    parts = []
    for place, axis in enumerate(axes):
        x = round(LEFT + place * gap, 1)
        anchor = "start" if place == 0 else "end" if place == len(axes) - 1 else "middle"
        parts.append(
            f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text class="tick" x="{x}" y="{HEIGHT - 4}" text-anchor="{anchor}">{escape(axis.name)}</text>'
            f'<text class="tick" x="{x}" y="{TOP - 3}" text-anchor="{anchor}">{escape(axis.top)}</text>'
            f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 10}" text-anchor="{anchor}">{escape(axis.bottom)}</text>'
        )
    for line in sorted(lines, key=lambda line: line.weight):
        for known, group in groupby(enumerate(line.shares), lambda pair: pair[1] is not None):
            here = [(axis, share) for axis, share in group if share is not None]
            if known:  # a line ends where it has no value; one value between two of those is a short line
                places = here if len(here) > 1 else [(here[0][0] + aside, here[0][1]) for aside in (-0.02, 0.02)]
                path = " ".join(place_of(*place) for place in places)
                parts.append(
                    f'<polyline class="line s{line.colour}" style="opacity:{0.15 + 0.85 * line.weight:.2f}" points="{path}">'
                    f"<title>{escape(line.name)}</title></polyline>"
                )
    return _figure(title, "", parts, 2 * WIDTH)


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    name: str
    colour: int = 1


@dataclass(frozen=True)
class Axis:
    name: str
    bottom: str
    """What stands at its ends."""
    top: str


@dataclass(frozen=True)
class Line:
    shares: Sequence[float | None]
    """Of each axis, from 0 (bottom) to 1; None for what has no value there."""
    name: str
    weight: float
    """From 0 (faint) to 1."""
    colour: int = 1


def _figure(title: str, note: str, parts: Sequence[str], width: int = WIDTH) -> Markup:
    legend = f'<span class="soft"> {escape(note)}</span>' if note else ""
    return Markup(  # noqa: S704  (names are escaped by the callers, numbers are numbers)
        f"<figure><figcaption><b>{escape(title)}</b>{legend}</figcaption>"
        f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) around low…high."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _thin(points: Sequence[Point]) -> Sequence[Point]:
    if len(points) <= MAX_POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]

"""Line charts as inline SVG: they follow the page's colours and fonts, need no script and stay sharp."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


def line_chart(title: str, series: Sequence[Series], show: Callable[[float], str], from_zero: bool = False) -> Markup | None:
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
            f"<title>{escape(each.name)}: {escape(show(py))} at step {px:,.10g}</title></circle>"
            for px, py in each.points
        ]
    legend = "".join(f'<span class="legend s{each.colour}">{escape(each.name)}</span>' for each in drawn) if len(drawn) > 1 else ""
    summary = ", ".join(f"{each.name} from {show(each.points[0][1])} to {show(each.points[-1][1])}" for each in drawn)
    return Markup(  # noqa: S704  (every name and number above is escaped)
        f"<figure><figcaption><b>{escape(title)}</b>{legend}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {escape(summary)}">{"".join(parts)}</svg></figure>'
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

"""Pages that need nothing else, neither network nor script: their templates, and how numbers are worded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

NAMES = {"f1": "F1", "lm": "LM", "mfu": "FLOPs utilisation"}


def template(name: str, **filters: Callable[[Any], str]) -> Template:
    """One of raybm/*.j2, with the words below as filters."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, seconds=seconds, short=short, words=words, **filters)
    return environment.get_template(name)


def number(value: Any) -> str:
    """1234567 → 1,234,567; 0.84613 → 0.8461; 0.00003 → 3e-05; what is no number as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1000 and abs(value) < 1e15):
        return f"{value:,.0f}"
    return f"{value:.4f}" if 0.01 <= abs(value) < 10 else f"{value:.4g}"


def seconds(value: float) -> str:
    """0.4 → 0.4 s; 75 → 1 min 15 s; 3700 → 1 h 2 min."""
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def short(count: int) -> str:
    """22713216 → 22.7M."""
    for unit, many in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= many:
            return f"{count / many:.1f}{unit}"
    return str(count)


def words(name: str) -> str:
    """macro_f1 → macro F1; tokens_per_s → tokens/s."""
    return " ".join(NAMES.get(word, word) for word in name.replace("_per_", "/").split("_"))

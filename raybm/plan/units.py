"""Numbers with their units, short."""

from __future__ import annotations

import math


def size(count: float) -> str:
    """1234567 → 1.2 MB."""
    return _scaled(count, ("bytes", "kB", "MB", "GB", "TB"))


def counted(count: float) -> str:
    """1234567 → 1.2 million."""
    return _scaled(count, ("", "thousand", "million", "billion", "trillion", "quadrillion"))


def duration(seconds: float) -> str:
    """75 → 75 s; 7500 → 125 min; 750000 → 208 h."""
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 * 5 else f"{seconds / 3600:.0f} h"


def _scaled(count: float, units: tuple[str, ...]) -> str:
    power = min(int(math.log10(max(count, 1)) // 3), len(units) - 1)
    value = count / 1000**power
    return (f"{value:.0f} {units[power]}" if power == 0 or value >= 100 else f"{value:.1f} {units[power]}").rstrip()

"""Prices of 53,940 round-cut diamonds in US dollars, with carat, cut, colour, clarity and measures in mm; a CSV with a header.

From ggplot2's `diamonds` (MIT), as plotnine (MIT, Hassan Kibirige) carries it.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

NAME = "diamonds"
PACKAGE = "plotnine==0.15.9"
SHA256 = "36f4526235b3ddd9ea379dd677093ea2ee1b58ab98adec1bde891930283448cd"
FILES = {"diamonds.csv": "9574730b03aba241d899c4a97511c5061b19358fab89510774fb6c24168345c4"}


def make(archive: Path, folder: Path) -> None:
    """The CSV, unchanged."""
    with zipfile.ZipFile(archive) as wheel:
        (folder / "diamonds.csv").write_bytes(wheel.read("plotnine/data/diamonds.csv"))

"""CSV and TSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, Literal, TextIO

from raybm.data.source import Source


class Delimited(Source):
    header: bool = True
    """Whether the first line names the columns; without one, `columns` maps to 0-based positions."""
    delimiter: str = ","
    quoting: bool = True
    """Whether double quotes enclose fields; off for files where a quote is just a character."""


class Csv(Delimited):
    """Comma-separated values (RFC 4180)."""

    kind: Literal["csv"] = "csv"


class Tsv(Delimited):
    """Tab-separated values."""

    kind: Literal["tsv"] = "tsv"
    delimiter: str = "\t"

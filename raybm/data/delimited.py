"""CSV and TSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, TextIO

from pydantic import Field

from raybm.core.errors import DataError
from raybm.core.spec import Check
from raybm.data.source import Row, Source

MAX_FIELD = 16 << 20  # characters; csv's own default of 131,072 refuses long documents


class Delimited(Source):
    """One record a line, or over several where a quoted field holds line ends."""

    header: bool = True
    """Whether the first line names the columns; without one, `columns` maps to 0-based positions."""
    delimiter: Annotated[str, Field(pattern=r'^[^"\r\n]$')] = ","
    """What stands between two fields."""
    quoting: bool = True
    """Whether double quotes enclose fields; off for files where a quote is just a character."""

    CHECKS: ClassVar[tuple[Check, ...]] = (
        *Source.CHECKS,
        Check(("columns", "header"), lambda columns, header: _headerless(columns, header)),
    )

    def rows(self, stream: TextIO) -> Iterator[tuple[int, Row | str]]:
        csv.field_size_limit(MAX_FIELD)
        reader = csv.reader(stream, delimiter=self.delimiter, quoting=csv.QUOTE_MINIMAL if self.quoting else csv.QUOTE_NONE, strict=True)
        names: list[str] | range | None = None
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                if "unexpected end of data" in str(error) or "field larger" in str(error):
                    raise DataError("a quote that opens here is never closed.", where=f"line {line}", remedy=NO_QUOTING) from None
                for lost in range(line, reader.line_num + 1):  # a quote that opens takes lines with it
                    yield lost, f"not {self.delimiter!r}-separated values: {error}" + (f" (from line {line} on)" if lost > line else "")
                continue
            if not fields:
                continue
            if names is None:
                names = _header(fields) if self.header else range(len(fields))
                if self.header:
                    continue
            if len(fields) != len(names):
                yield line, f"{len(fields)} fields instead of {len(names)}"
            else:
                yield line, dict(zip(names, fields, strict=True))
        if names is None and self.header:
            raise DataError("is empty, without even a header line.", remedy="Check the path.")


NO_QUOTING = "Close it, or set `quoting: false` if quotes are plain characters in this file."


def _header(fields: list[str]) -> list[str]:
    names = [field.strip() or f"#{position}" for position, field in enumerate(fields)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(
            f"the header names {twice[0][:40]!r} twice.",
            where="line 1",
            remedy="Rename one, or set `header: false` and map columns to positions (the header then is one bad row).",
        )
    return names


def _headerless(columns: dict[str, str | int], header: bool) -> tuple[str, str] | None:
    if not header and not (columns and all(isinstance(column, int) for column in columns.values())):
        return "a file without a header has positions, not names.", "Map as in `columns: {label: 0, text: 1}`."
    return None


class Csv(Delimited):
    """Comma-separated values (RFC 4180)."""

    kind: Literal["csv"] = "csv"


class Tsv(Delimited):
    """Tab-separated values."""

    kind: Literal["tsv"] = "tsv"
    delimiter: Annotated[str, Field(pattern=r'^[^"\r\n]$')] = "\t"
    """What stands between two fields."""

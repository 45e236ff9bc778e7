"""Image files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, ClassVar, Literal

from raybm.core.errors import UserError
from raybm.data.source import Row, Source
from raybm.models import dataurl


class Images(Source):
    """A file a row (PNG, JPEG, GIF, BMP, WebP, PNM): columns `image` (the file as a data URL), `label` (its folder's name) and
    `file` (its own)."""

    kind: Literal["images"] = "images"

    BINARY: ClassVar[bool] = True

    def rows(self, stream: BinaryIO) -> Iterator[tuple[int, Row | str]]:
        path = PurePosixPath(stream.name)
        try:
            yield 1, {"image": dataurl.encode(stream.read()), "label": path.parent.name, "file": path.name}
        except UserError as error:
            yield 1, error.what

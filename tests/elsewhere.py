"""A storage on another machine, for tests without one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from raybm.core.storage import LocalStorage


@dataclass(frozen=True)
class Elsewhere(LocalStorage):
    """A folder that behaves as if it were far away, and notes what goes there and back."""

    did: list[str] = field(default_factory=list, compare=False)

    def at(self, prefix: str) -> Elsewhere:
        return Elsewhere(super().at(prefix).root, self.did)

    def local(self, prefix: str = "") -> None:
        return None

    def write(self, key: str, data: bytes) -> None:
        self.did.append(f"write {key}")
        super().write(key, data)

    def download(self, prefix: str, folder: Path) -> None:
        self.did.append(f"download {prefix}")
        super().download(prefix, folder)

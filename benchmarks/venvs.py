"""Peers that cannot be installed beside raybm, each in a virtual environment of its own, made once and kept."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import common

FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raybm-benchmarks"
INSTALL_TIMEOUT_S = 1800.0


def binaries(name: str, requirements: Sequence[str]) -> Path:
    """The folder of the environment's commands. Its marker, written last, says what was installed."""
    folder, wanted = FOLDER / name, "\n".join(requirements)
    marker = folder / "installed"
    if not marker.exists() or marker.read_text() != wanted:
        common.say(f"installing {' '.join(requirements)} in {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        common.run([sys.executable, "-m", "venv", folder])
        common.run([folder / "bin/python", "-m", "pip", "install", "--quiet", *requirements], timeout_s=INSTALL_TIMEOUT_S)
        marker.write_text(wanted)
    return folder / "bin"

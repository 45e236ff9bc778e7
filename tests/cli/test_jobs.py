"""Commands that look at what is there."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raybm import doctor
from raybm.cli import app
from raybm.core.storage import open_storage

LIKE_MARKUP = "[enforce fail at [/pytorch/c10/core/CPUAllocator.cpp]:98] :smile:"


def failed_run(storage: Path, error: str) -> None:
    state = {"run": "j-1", "job": "j", "state": "failed", "error": error, "heartbeat": time.time(), "host": "h", "pid": 1}
    open_storage(str(storage)).write("runs/j-1/state.json", json.dumps(state | {"started": time.time()}).encode())


def test_tables_show_errors_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed_run(tmp_path, LIKE_MARKUP)
    shown = CliRunner().invoke(app, ["runs", "--storage", str(tmp_path)])
    assert shown.exit_code == 0 and LIKE_MARKUP in shown.stdout
    monkeypatch.setattr(doctor, "findings", lambda storage: [doctor.Finding("torch", False, LIKE_MARKUP, "See [/there].")])
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 1 and LIKE_MARKUP in shown.stdout and "→ See [/there]." in shown.stdout

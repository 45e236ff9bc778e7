"""Commands that look at what is there."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raybm import doctor
from raybm.cli import app
from raybm.core.errors import UserError
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


def test_init_makes_the_folder_of_its_out(tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "".join(f"this is row {i},{'ab'[i % 2]}\n" for i in range(40)))
    out = tmp_path / "new/job.yaml"
    assert CliRunner().invoke(app, ["init", str(data), "--out", str(out)]).exit_code == 0 and out.exists()
    refused = CliRunner().invoke(app, ["init", str(data), "--out", str(data / "job.yaml")])
    assert isinstance(refused.exception, UserError) and "cannot be written" in str(refused.exception)


def test_predict_takes_an_address_as_it_is_and_then_wants_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, Path]] = []
    monkeypatch.setattr("raybm.cluster.connect", lambda **settings: nullcontext())
    monkeypatch.setattr("raybm.predict.predict", lambda ref, file, out, *args, **more: given.append((str(file), out)))
    for file in ("s3://bucket/x.jsonl", str(tmp_path / "*.jsonl")):
        refused = CliRunner().invoke(app, ["predict", "m@prod", file])
        assert isinstance(refused.exception, UserError) and "--out" in str(refused.exception)
        assert CliRunner().invoke(app, ["predict", "m@prod", file, "--out", "o.jsonl"]).exit_code == 0
    assert CliRunner().invoke(app, ["predict", "m@prod", "a/x.csv"]).exit_code == 0
    outs = [Path("o.jsonl"), Path("o.jsonl"), Path("a/x.csv.predictions.jsonl")]
    assert given == list(zip(["s3://bucket/x.jsonl", str(tmp_path / "*.jsonl"), "a/x.csv"], outs, strict=True))

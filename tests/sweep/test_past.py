from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raybm.cli import app
from raybm.core.errors import NotFound, UserError
from raybm.core.runs import Run
from raybm.core.storage import open_storage
from raybm.sweep.past import Past
from tests.sweep.test_search import GRID, end, job, search


def run(folder: Path, *losses: float) -> str:
    """A run whose sweep has come so far."""
    root, spec = open_storage(str(folder / "store")), job(folder, GRID)
    made = Run(root, "tiny", spec.canonical(), on_cancel=lambda: None)
    found = search(folder, GRID, made.id)
    for loss in losses:
        end(found, loss=loss)
    end(found)
    made.close(state="succeeded")
    return made.id


def sweep(folder: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["sweep", *arguments, "--storage", str(folder / "store")])
    assert done.exit_code == 0, done.output
    return done.output


def test_looking_at_a_sweep(tmp_path: Path) -> None:
    name = run(tmp_path, 3.0, 1.0, 2.0)
    shown = sweep(tmp_path, "show", name).splitlines()
    assert [line.split()[0] for line in shown[1:]] == ["00002-0", "00003-0", "00001-0", "00004-0"] and "it burnt." in shown[4]
    assert json.loads(sweep(tmp_path, "best", name)) == {"train.lr": 0.1, "train.global_batch": 16}
    compared = sweep(tmp_path, "compare", name, name).splitlines()
    assert len(compared) == 3 and compared[1] == compared[2] and "grid" in compared[1] and "train.lr 0.1" in compared[1]


def test_what_there_is_not(tmp_path: Path) -> None:
    root = open_storage(str(tmp_path / "store"))
    with pytest.raises(NotFound, match="there is no such run"):
        Past(root, "nothing")
    plain = Run(root, "tiny", job(tmp_path, GRID).model_copy(update={"sweep": None}).canonical(), on_cancel=lambda: None)
    early = Run(root, "tiny", job(tmp_path, GRID).canonical(), on_cancel=lambda: None)
    for made, wrong in ((plain, "has no sweep"), (early, "has not begun with its trials")):
        made.close(state="failed")
        with pytest.raises(UserError, match=wrong):
            Past(root, made.id)
    with pytest.raises(UserError, match="no trial is finished"):
        Past(root, run(tmp_path)).best()
    with pytest.raises(UserError, match="published nothing"):
        Past(root, run(tmp_path)).published()

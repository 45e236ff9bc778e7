from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raybm.cli import app
from raybm.core.errors import NotFound, UserError
from raybm.core.registry import Registry
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


def test_a_run_that_is_over_keeps_its_best(tmp_path: Path) -> None:
    """Another one that adds points to the same sweep finds a better one."""
    root = open_storage(str(tmp_path / "store"))
    made = Run(root, "tiny", job(tmp_path, GRID).canonical(), on_cancel=lambda: None)
    found = search(tmp_path, GRID | {"budget": {"trials": 2}}, made.id)
    end(found, loss=3.0), end(found, loss=2.0)
    found.note(points=2, repeats=1, best=2)
    made.close(state="succeeded")
    more = run(tmp_path, 1.0)
    assert [Past(root, name).best().point for name in (made.id, more)] == [2, 3]
    assert list(Past(root, made.id).points) == [1, 2] and len(sweep(tmp_path, "show", made.id).splitlines()) == 3


def test_sweeps_whose_seeds_are_not_over_are_compared(tmp_path: Path) -> None:
    spec = GRID | {"repeats": 2}
    made = Run(open_storage(str(tmp_path / "store")), "tiny", job(tmp_path, spec).canonical(), on_cancel=lambda: None)
    end(search(tmp_path, spec, made.id), loss=1.0)
    made.close(state="cancelled")
    (line,) = sweep(tmp_path, "compare", made.id).splitlines()[1:]
    assert line.split()[:4] == [made.id, "grid", "2", "1"]


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


def test_what_is_known_before_the_first_trial(tmp_path: Path) -> None:
    name = run(tmp_path, 3.0, 1.0, 2.0)  # train.lr 0.1, 0.1 and 0.2
    sampled = {"space": {"train.lr": {"uniform": [0.05, 0.15]}, "train.warmup": {"uniform": [0.0, 0.5]}}, "sampler": {"kind": "tpe"}}
    found = search(tmp_path, sampled | {"warm_start": [name]})
    assert [trial.value for trial in found.study.study.trials] == [3.0, 1.0]  # the third lies outside; the fourth failed
    assert found.study.study.trials[0].params == {"train.lr": 0.1, "train.warmup": 0.06}  # as its job had it
    assert found.points == [] and found.context.progress.__self__[-1] == f"sweep: 2 points are known by {name}, 1 lie elsewhere"  # type: ignore[attr-defined]
    with pytest.raises(NotFound, match="there is no such run"):
        search(tmp_path, sampled | {"warm_start": ["nothing"]})
    with pytest.raises(UserError, match="none of its 3 points lies in the space"):
        search(tmp_path, sampled | {"space": {"train.lr": {"uniform": [0.5, 0.6]}}, "warm_start": [name]})
    with pytest.raises(UserError, match="it has no finished trial with evaluate"):
        search(tmp_path, sampled | {"warm_start": [name], "objectives": {"evaluate.perplexity": "min"}})


def test_a_published_job_is_tried_first(tmp_path: Path) -> None:
    published = job(tmp_path, GRID, train={"lr": 0.07}).canonical()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1")
    Registry(open_storage(str(tmp_path / "store"))).publish("tiny", tmp_path / "model", {"lineage": {"spec": published}})
    space = {"train.lr": {"loguniform": [1e-2, 1e-1]}, "train.global_batch": [32, 64]}
    sampled = {"space": space, "sampler": {"kind": "random"}, "warm_start": ["registry:tiny@1"]}
    first = end(search(tmp_path, sampled), loss=1.0)
    assert first.start == {"train.lr": 0.07, "train.global_batch": 32}
    again = search(tmp_path, sampled)
    assert [point.trials[0].start for point in again.points] == [first.start]
    assert end(again, loss=1.0).start != first.start

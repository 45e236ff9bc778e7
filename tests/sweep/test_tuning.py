"""Whole sweeps of a tiny job on a real Ray."""

from __future__ import annotations

import csv
import os
import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import ray
from ray import tune as raytune
from ray.util import placement_group_table
from typer.testing import CliRunner

from raybm.cli import app
from raybm.cli.driver import drive
from raybm.core.context import Context
from raybm.core.errors import Busy, PlacementError, StorageError
from raybm.core.events import Events, by_step, read_events
from raybm.core.runs import states
from raybm.core.spec import load
from raybm.core.storage import open_storage
from raybm.spec import JobSpec
from raybm.spec.sweep import TIME
from raybm.sweep import tuning
from raybm.sweep.search import Search
from raybm.sweep.trial import stored
from raybm.sweep.work import _once_there_is_room
from tests.e2e import job

pytestmark = pytest.mark.integration
RAW: dict[str, Any] = {"publish": None, "evaluate": None}
TRAIN = {"max_steps": 12, "validate_every_steps": 3, "global_batch": 8, "zero": {"stage": 0}}


def spec(folder: Path, sweep: dict[str, Any] | None, **changes: Any) -> JobSpec:
    given = {"resources": {"workers": 1}, "train": TRAIN, "data": {"split": {"validation": 0.2, "test": 0.2}}} | changes
    return load(JobSpec, job.write_spec(folder, str(folder / "store"), **given, **({"sweep": sweep} if sweep else {})))


def rows(folder: Path) -> list[dict[str, str]]:
    """sweep.csv of the newest run."""
    newest = states(open_storage(str(folder / "store")))[0].run
    return list(csv.DictReader((folder / "store" / "runs" / newest / "sweep.csv").open(encoding="utf-8")))


def held() -> tuple[list[Any], list[Any]]:
    """Placement groups, and actors of trials and of those who watch them, that are still there."""
    groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    alive = [actor for actor in ray._private.state.actors().values() if actor["State"] not in ("DEAD",)]
    return groups, [actor for actor in alive if actor["ActorClassName"] in ("ImplicitFunc", "Beats")]


def assert_given_back(cpus: int) -> None:
    """All of the session's CPUs are free again, and nothing of a sweep is left."""
    deadline = time.monotonic() + 60  # Ray Train's cleaner looks every few seconds
    while (held() != ([], []) or ray.available_resources().get("CPU") != cpus) and time.monotonic() < deadline:
        time.sleep(1)
    assert held() == ([], []) and ray.available_resources()["CPU"] == cpus


def test_the_best_of_a_grid_is_published_and_nothing_is_done_twice(ray_session: str, tmp_path: Path) -> None:
    sweep = {"space": {"train.lr": [1e-4, 1e-2, 1e12]}, "sampler": {"kind": "grid"}}
    given = spec(tmp_path, sweep)
    records = drive(given, ray_session)
    table = {float(row["train.lr"]): row for row in rows(tmp_path)}
    assert [table[lr]["end"] for lr in (1e-4, 1e-2, 1e12)] == ["finished", "finished", "failed"]
    assert "the loss is" in table[1e12]["error"] and float(table[1e-2]["validation.loss"]) < float(table[1e-4]["validation.loss"])
    assert records["publish"].metrics["version"] == 1 and records["train"].view["train"]["lr"] == 1e-2
    assert held() == ([], [])
    run = states(open_storage(str(tmp_path / "store")))[0].run
    events = read_events(tmp_path / "store" / "runs" / run / "metrics.jsonl")
    assert list(by_step(events, "validate")) and by_step(events, "train")[-1]["step"] == 12  # the report's curves
    promoted = CliRunner().invoke(app, ["sweep", "promote", run, "best", "--storage", str(tmp_path / "store")])
    assert promoted.output.strip() == "tiny@best → 1"

    assert len(list((tmp_path / "store" / "artifacts" / "prepare").iterdir())) == 1, "trials share their data"
    made = sorted((tmp_path / "store" / "artifacts" / "train").iterdir())
    again = drive(given, ray_session)
    assert again["train"].key == records["train"].key and sorted((tmp_path / "store" / "artifacts" / "train").iterdir()) == made
    assert rows(tmp_path) == list(table.values())


def test_a_trial_learns_what_a_gang_of_one_learns(ray_session: str, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir(), (tmp_path / "gang").mkdir()
    swept = spec(tmp_path / "alone", {"space": {"train.lr": [1e-2]}, "sampler": {"kind": "grid"}}, **RAW)
    drive(swept, ray_session)
    drive(spec(tmp_path / "gang", None, train=TRAIN | {"lr": 1e-2}, **RAW), ray_session)
    alone = tmp_path / "alone" / "store" / "runs" / states(open_storage(str(tmp_path / "alone" / "store")))[0].run / "trials" / "00001-0"
    drive(swept.model_copy(update={"sweep": None, "train": swept.train.model_copy(update={"lr": 1e-2})}), ray_session)
    assert len(list((tmp_path / "alone" / "store" / "artifacts" / "train").iterdir())) == 1, "a job finds what a sweep has trained"
    losses = {event["step"]: event["loss"] for event in by_step(read_events(alone / "metrics.jsonl"), "train")}
    assert losses == pytest.approx(job.losses(open_storage(str(tmp_path / "gang" / "store"))), rel=1e-6)


@pytest.mark.parametrize(
    "scheduler",
    [
        {"kind": "hyperband", "reduction": 2, "brackets": 1},  # which is asha; of more, a trial may be alone in its own
        {"kind": "median", "grace": 1, "others": 2},
    ],
)
def test_a_scheduler_stops_what_falls_behind(ray_session: str, tmp_path: Path, scheduler: dict[str, Any]) -> None:
    space = {"train.lr": [1e-2, 1e-7], "train.warmup": [0.0, 0.01]}
    sweep = {"space": space, "sampler": {"kind": "grid"}, "scheduler": scheduler, "concurrent": 1}
    drive(spec(tmp_path, sweep, publish=None, evaluate=None), ray_session)
    assert [row["end"] for row in rows(tmp_path)] == ["finished", "finished", "stopped", "stopped"]
    assert held() == ([], [])


def test_a_trial_that_is_promoted_goes_on_from_its_checkpoint(ray_session: str, tmp_path: Path) -> None:
    scheduler = {"kind": "asha", "type": "promotion", "reduction": 2}
    sweep = {"space": {"train.lr": [1e-7, 1e-2]}, "sampler": {"kind": "grid"}, "scheduler": scheduler, "concurrent": 1}
    records = drive(spec(tmp_path, sweep, **RAW), ray_session)
    table = rows(tmp_path)
    assert [(row["end"], float(row["validations"])) for row in table] == [("stopped", 1), ("finished", 4)] and held() == ([], [])
    trial = tmp_path / "store" / "runs" / states(open_storage(str(tmp_path / "store")))[0].run / "trials" / "00002-0"
    events = list(read_events(trial / "metrics.jsonl"))
    assert [event["step"] for event in events if event["kind"] == "resume"] == [3, 6]
    assert [event["step"] for event in events if event["kind"] == "validate"] == [3, 6, 9, 12]  # each once
    assert records["train"].view["train"]["lr"] == 1e-2


def test_a_process_that_gives_no_sign_of_life_and_one_that_dies(ray_session: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, stopped = tuning.run_trial, tmp_path / "stopped"

    def trial(config: dict[str, Any]) -> None:
        if config["name"].startswith("00001") and not stopped.exists():
            stopped.touch()
            os.kill(os.getpid(), signal.SIGSTOP)  # it neither ends nor answers
        if config["name"].startswith("00002"):
            os.kill(os.getpid(), signal.SIGKILL)
        work(config)

    monkeypatch.setattr(tuning, "run_trial", trial)
    train = TRAIN | {"stall_timeout_s": 15.0}
    sweep = {"space": {"train.lr": [1e-3, 1e-2]}, "sampler": {"kind": "grid"}, "max_failures": 1}
    drive(spec(tmp_path, sweep, publish=None, evaluate=None, train=train), ray_session)
    table = rows(tmp_path)
    assert [row["end"] for row in table] == ["finished", "failed"] and "died" in table[1]["error"]
    run = tmp_path / "store" / "runs" / states(open_storage(str(tmp_path / "store")))[0].run
    assert "worker process has died" in (run / "trials" / "00002-0" / "error.txt").read_text() and held() == ([], [])


def test_a_process_that_does_not_let_go_of_its_trial_and_a_storage_that_fails_once(
    ray_session: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk, stopped, refused = tuning.run_trial, tmp_path / "stopped", tmp_path / "refused"

    def trial(config: dict[str, Any]) -> None:
        first = config["name"].startswith("00001") and not refused.exists()
        try:
            with patch("raybm.sweep.work._walk", side_effect=StorageError("refuses.")) if first else nullcontext():
                refused.touch()
                walk(config)
        finally:
            if config["name"].startswith("00003") and not stopped.exists():
                stopped.touch()
                os.kill(os.getpid(), signal.SIGSTOP)  # the next trial waits for this process

    monkeypatch.setattr(tuning, "run_trial", trial)
    space = {"train.lr": [1e-2, 1e-7], "train.warmup": [0.0, 0.01]}
    sweep = {"space": space, "sampler": {"kind": "grid"}, "scheduler": {"kind": "asha", "reduction": 2}, "concurrent": 1, "max_failures": 1}
    drive(spec(tmp_path, sweep, publish=None, evaluate=None, train=TRAIN | {"stall_timeout_s": 15.0}), ray_session)
    assert [row["end"] for row in rows(tmp_path)] == ["finished", "finished", "stopped", "stopped"]
    assert refused.exists() and stopped.exists() and held() == ([], [])


@pytest.mark.timeout(600)  # four starts of Ray Train
def test_gangs_give_back_what_they_held(ray_session: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is killed, one that finishes, one that is stopped, and one whose loss is no number."""
    walk, place = tuning.run_trial, tmp_path / "store" / "runs"

    def trial(config: dict[str, Any]) -> None:
        def kill() -> None:
            events = place / config["run"] / "trials" / config["name"] / "metrics.jsonl"
            while not (events.exists() and '"validate"' in events.read_text()):
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)

        if config["name"].startswith("00001"):
            threading.Thread(target=kill, daemon=True).start()
        walk(config)

    monkeypatch.setattr(tuning, "run_trial", trial)
    sweep = {"space": {"train.lr": [1e-3, 1e-2, 1e-7, 1e12]}, "sampler": {"kind": "grid"}, "scheduler": {"kind": "asha", "reduction": 2}}
    train = TRAIN | {"validate_every_steps": 2, "zero": {"stage": 1}}
    given = spec(tmp_path, sweep | {"max_failures": 0, "concurrent": 1}, publish=None, evaluate=None, resources={"workers": 2}, train=train)
    records = drive(given, ray_session)
    table = rows(tmp_path)
    assert [row["end"] for row in table] == ["failed", "finished", "stopped", "failed"] and records["train"].view["workers"] == 2
    assert "died" in table[0]["error"] and "the loss is" in table[3]["error"]
    assert_given_back(4)


def test_a_population_exchanges_checkpoints(ray_session: str, tmp_path: Path) -> None:
    scheduler = {"kind": "pb2", "size": 2, "share": 0.5}  # whose second exchange has seen two members' gains
    sweep = {"space": {"train.lr": {"loguniform": [1e-5, 1e-2]}}, "sampler": {"kind": "random"}, "scheduler": scheduler, "concurrent": 1}
    train = TRAIN | {"validate_every_steps": 4, "zero": {"stage": 1}}
    records = drive(spec(tmp_path, sweep, publish=None, evaluate=None, train=train), ray_session)
    table = rows(tmp_path)
    assert [row["end"] for row in table] == ["stopped"] * 4 + ["finished"] * 2
    assert [float(row["validations"]) for row in table] == [1, 1, 2, 2, 3, 3] and held() == ([], [])
    trials = tmp_path / "store" / "runs" / states(open_storage(str(tmp_path / "store")))[0].run / "trials"
    for number, row in enumerate(table[2:], 3):  # nobody trains again what its parent has
        assert [event["step"] for event in read_events(trials / f"{number:05d}-0" / "metrics.jsonl") if event["kind"] == "resume"] == [
            4 * (int(float(row["validations"])) - 1)
        ]
    best = min(table[4:], key=lambda row: float(row["validation.loss"]))
    assert records["train"].metrics["validation"]["loss"] == pytest.approx(float(best["validation.loss"]))

    phases = records["train"].view["train"]["phases"]  # the same schedule, trained from nothing
    assert {phase["after"] for phase in phases} <= {4, 8}
    (tmp_path / "again").mkdir()
    written = train | {"lr": records["train"].view["train"]["lr"], "phases": phases}
    sweep_of_one = {"space": {"train.warmup": [0.06]}, "sampler": {"kind": "grid"}}
    again = drive(spec(tmp_path / "again", sweep_of_one, publish=None, evaluate=None, train=written), ray_session)
    assert again["train"].metrics["validation"] == pytest.approx(records["train"].metrics["validation"], abs=1e-6)


@pytest.mark.timeout(600)  # four starts of Ray Train
def test_a_population_of_gangs_exchanges_shards(ray_session: str, tmp_path: Path) -> None:
    scheduler = {"kind": "pbt", "size": 2, "share": 0.5}
    sweep = {"space": {"train.lr": {"loguniform": [1e-6, 1e-2]}}, "sampler": {"kind": "random"}, "scheduler": scheduler, "concurrent": 1}
    train = TRAIN | {"max_steps": 8, "validate_every_steps": 4, "zero": {"stage": 2}}
    given = spec(tmp_path, sweep, publish=None, evaluate=None, resources={"workers": 2}, train=train)
    records = drive(given, ray_session)
    table = rows(tmp_path)
    assert [row["end"] for row in table] == ["stopped"] * 2 + ["finished"] * 2
    better = min(table[:2], key=lambda row: float(row["validation.loss"]))["point"]
    assert [row["parent"] for row in table[2:]] == [better, better] and records["train"].view["workers"] == 2
    trials = tmp_path / "store" / "runs" / states(open_storage(str(tmp_path / "store")))[0].run / "trials"
    for name in ("00003-0", "00004-0"):  # both ranks' parts of the optimiser, as the parent left them
        assert [event["step"] for event in read_events(trials / name / "metrics.jsonl") if event["kind"] == "resume"] == [4]


def test_members_that_have_become_alike(ray_session: str, tmp_path: Path) -> None:
    """Their training is one artifact: who comes second finds it where it is to pause, or done."""
    sweep = {"space": {"train.lr": [1e-2]}, "sampler": {"kind": "random"}, "scheduler": {"kind": "pbt", "size": 2, "share": 0.5}}
    train = TRAIN | {"validate_every_steps": 6}
    drive(spec(tmp_path, sweep | {"concurrent": 1}, publish=None, evaluate=None, train=train), ray_session)
    table = rows(tmp_path)
    assert [row["end"] for row in table] == ["stopped"] * 2 + ["finished"] * 2
    assert table[0]["validation.loss"] == table[1]["validation.loss"] and table[2]["validation.loss"] == table[3]["validation.loss"]
    assert len(list((tmp_path / "store" / "artifacts" / "train").iterdir())) == 1


def test_paths_begin_where_the_driver_works(ray_session: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune has each trial work in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    given = spec(tmp_path, {"space": {"train.lr": [1e-2]}, "sampler": {"kind": "grid"}}, **RAW)
    (source,) = given.data.sources
    beside = source.model_copy(update={"path": os.path.relpath(source.path, tmp_path)})
    given = given.model_copy(update={"data": given.data.model_copy(update={"sources": (beside,)})})
    drive(given, ray_session)
    assert [row["end"] for row in rows(tmp_path)] == ["finished"]
    assert len(list((tmp_path / "store" / "artifacts" / "prepare").iterdir())) == 1, "prepared once"


def test_what_the_end_of_the_time_ends_is_kept_and_goes_on(ray_session: str, tmp_path: Path) -> None:
    """Tune says nothing of trials that it ends with everything."""

    def endless(config: dict[str, Any]) -> None:
        for validation in range(1, 1000):
            raytune.report({TIME: validation, "validation.loss": 1.0 / validation})
            time.sleep(0.2)

    given = spec(tmp_path, {"space": {"train.lr": [1e-2]}, "sampler": {"kind": "grid"}, "budget": {"hours": 20 / 3600}}, **RAW)
    context = Context(given.canonical(), "tiny", open_storage(given.storage), given.resources, tmp_path, Events(tmp_path), print)
    found = Search(given, context, "run")
    tuning.tune(found, 1, endless)
    (kept,) = stored(found.storage)[1]
    assert kept.end is None and len(kept.curve) > 1 and kept.metrics == kept.curve[-1]
    following = Search(given, context, "again").next()
    assert following is not None and following[1] == kept


def test_the_sweep_ends_where_its_energy_is_used_up(ray_session: str, tmp_path: Path) -> None:
    def hungry(config: dict[str, Any]) -> None:
        for validation in range(1, 1000):
            raytune.report({TIME: validation, "validation.loss": 1.0 / validation, "validation.energy_kwh": 0.1 * validation})
            time.sleep(0.2)

    sweep = {"space": {"train.lr": [1e-2, 1e-3]}, "sampler": {"kind": "grid"}, "budget": {"energy_kwh": 0.95}, "concurrent": 1}
    given = spec(tmp_path, sweep, **RAW, train=TRAIN | {"energy": True})
    said: list[str] = []
    context = Context(given.canonical(), "tiny", open_storage(given.storage), given.resources, tmp_path, Events(tmp_path), said.append)
    found = Search(given, context, "run")
    tuning.tune(found, 2, hungry)
    assert "sweep: 1 trials at a time; 2 would fit" in said
    assert 0.95 <= found.points.energy_kwh() < 5 and not found.more and found.next() is None
    assert "the budget's energy is used up" in said[-1] and held() == ([], [])
    assert all(trial.end is None and trial.curve for trial in stored(found.storage)[1]), "they go on with a larger budget"


def test_trials_that_are_too_large_for_the_cluster_are_refused(ray_session: str, tmp_path: Path) -> None:
    sweep = {"space": {"train.lr": [1e-2]}, "sampler": {"kind": "grid"}}
    train = TRAIN | {"global_batch": 99}
    with pytest.raises(PlacementError, match="the cluster can never place 99 workers"):
        drive(spec(tmp_path, sweep, **RAW, resources={"workers": 99}, train=train), ray_session)


def test_a_trial_waits_for_its_place_as_long_as_it_takes() -> None:
    tried: list[int] = []

    def work() -> str:
        tried.append(1)
        if len(tried) < 3:
            raise Busy("no place.")
        return "done"

    assert _once_there_is_room(work) == "done" and len(tried) == 3

from __future__ import annotations

import csv
import io
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raybm import runner
from raybm.core.context import Context
from raybm.core.errors import Busy, SpecError, UserError
from raybm.core.events import Events, read_events
from raybm.core.lease import Lease
from raybm.core.storage import open_storage
from raybm.spec import JobSpec
from raybm.spec.sweep import SweepSpec
from raybm.sweep.page import write
from raybm.sweep.search import Search, run
from raybm.sweep.trial import Trial


def job(folder: Path, sweep: dict[str, Any], **changes: Any) -> JobSpec:
    return JobSpec.parse(
        {
            "name": "tiny",
            "storage": str(folder / "store"),
            "resources": {"workers": 1},
            "task": {"kind": "causal_lm"},
            "model": {"ref": "scratch:llama", "max_length": 32, "config": {"hidden_size": 32}, "tokenizer": {"train": "char"}},
            "data": {"sources": [{"kind": "text", "path": str(folder / "text.txt")}]},
            "sweep": sweep,
        }
        | changes
    )


def search(folder: Path, sweep: dict[str, Any], run: str = "run", **changes: Any) -> Search:
    if not (folder / "text.txt").exists():
        (folder / "text.txt").write_text("the quick brown fox", encoding="utf-8")
    made = job(folder, sweep, **changes)
    said: list[str] = []
    context = Context(made.canonical(), "tiny", open_storage(made.storage), made.resources, folder, Events(folder), said.append)
    return Search(made, context, run)


def end(found: Search, **loss: float) -> Trial:
    """The next trial, finished with these metrics, or failed without."""
    following = found.next()
    assert following is not None
    point, trial = following
    metrics = {f"validation.{name}": value for name, value in loss.items()}
    trial = trial.model_copy(update={"end": "finished", "metrics": metrics} if loss else {"end": "failed", "error": "it burnt."})
    found.ended(point, trial)
    return trial


GRID = {"space": {"train.lr": [0.1, 0.2], "train.global_batch": [8, 16]}, "sampler": {"kind": "grid"}}


@pytest.mark.parametrize(
    ("sweep", "wrong"),
    [
        ({"space": {"train.lr": [0.1]}, "warm_start": ["an-earlier-run"], "sampler": {"kind": "grid"}}, "a grid tries all"),
        ({"space": {"train.lr": [0.1]}, "warm_start": ["an-earlier-run"], "sampler": {"kind": "random"}}, "learns nothing"),
        ({"space": {"train.lr": [0.1]}, "warm_start": ["registry:model"]}, "registry:name@alias-or-version"),
        ({"space": {"train.lr": [0.1]}, "budget": {"energy_kwh": 1}}, "energy of the trials is not measured"),
        ({"space": {"train.lr": [0.1]}, "objectives": {"train.energy_kwh": "min"}}, "Set train.energy: true"),
        ({"space": {}}, "sweep.space: {}: should have at least 1 item, not 0."),
        ({"space": {"train.lr": {"uniform": [0, 1]}}, "sampler": {"kind": "grid"}}, "a grid cannot list the values of train.lr"),
        ({"space": {"train.max_steps": {"randint": [1, 10**9]}}, "sampler": {"kind": "grid"}}, "a grid of 1,000,000,000 points"),
        ({"space": {"train.lr": {"choice": [1.0], "when": {"train.optimizer": []}}}}, "train.lr wants one of no values"),
        (
            {"space": {"train.lr": [1.0]}, "sampler": {"kind": "cma_es"}, "objectives": {"validation.loss": "min", "train.seconds": "min"}},
            "cma_es goes by one objective",
        ),
        ({"space": {"train.lr": [1]}, "scheduler": {"kind": "hyperband"}, "repeats": 2}, "would stop the seeds of a point one by one"),
        (
            {"space": {"train.lr": [1.0]}, "sampler": {"kind": "cma_es"}, "scheduler": {"kind": "asha", "type": "promotion"}},
            "cma_es does not learn from points that pause",
        ),
        (
            {"space": {"train.lr": [1.0]}, "sampler": {"kind": "gp"}, "scheduler": {"kind": "asha", "type": "promotion"}},
            "gp does not learn from points that pause. Use tpe",
        ),
        ({"space": {"train.lr": [1]}, "objectives": {"evaluate.accuracy": "max"}}, "no stage reports evaluate.accuracy"),
        ({"space": {"train.lr": [1]}, "objectives": {"validation.los": "min"}}, "Did you mean 'validation.loss'?"),
        ({"space": {"train.lr": [1]}, "budget": {"trials": 0}}, "sweep.budget.trials"),
        ({"space": {"train.lr": [1]}, "budget": {"hours": 0}}, "sweep.budget.hours"),
        ({"space": {"train.lr": [1]}, "budget": {"energy_kwh": 0.0}}, "sweep.budget.energy_kwh"),
        ({"space": {"resources.workers": [1, 2]}}, "resources.workers is nothing to search over"),
        (
            {"space": {"train.lr": [1]}, "objectives": {"evaluate.loss": "min"}, "scheduler": {"kind": "asha"}},
            "asha needs one objective that is known on the way",
        ),
        (
            {"space": {"train.lr": {"choice": [1], "when": {"train.ema": 1}}, "train.ema": [1]}},
            "train.lr depends on train.ema, which stands below",
        ),
    ],
)
def test_mistakes_in_the_section(tmp_path: Path, sweep: dict[str, Any], wrong: str) -> None:
    with pytest.raises(SpecError) as caught:
        job(tmp_path, sweep)
    assert wrong in str(caught.value)


def test_the_best_goes_on(tmp_path: Path) -> None:
    found = search(tmp_path, GRID)
    for loss in (3.0, 1.0, 2.0):
        end(found, loss=loss)
    end(found)
    assert found.next() is None and not found.more
    winner = found.winner()
    assert (winner.train.lr, winner.train.global_batch, winner.sweep) == (0.1, 16, None)
    rows = list(csv.DictReader(io.StringIO(found.points.table(found.spec.space))))
    assert (
        [row["end"] for row in rows] == ["finished"] * 3 + ["failed"]
        and rows[1]["validation.loss"] == "1.0"
        and rows[3]["error"] == "it burnt."
    )
    events = [event for event in read_events(tmp_path / "metrics.jsonl") if event["kind"] == "trial"]
    assert [event["step"] for event in events] == [1, 2, 3, 4] and events[1]["validation.loss"] == 1.0


def test_the_budgets_energy(tmp_path: Path) -> None:
    found = search(tmp_path, GRID | {"budget": {"energy_kwh": 0.5}}, train={"energy": True})
    end(found, loss=1.0, energy_kwh=0.2)
    following = found.next()
    assert following is not None
    point, trial = following
    trial = found.reported(point, trial, {"validations": 1, "validation.loss": 1.0, "validation.energy_kwh": 0.2})
    assert found.points.energy_kwh() == pytest.approx(0.4) and found.more and not found.spent
    found.reported(point, trial, {"validations": 2, "validation.loss": 0.9, "validation.energy_kwh": 0.3})
    assert found.spent and not found.more and found.next() is None


def test_a_population_uses_the_energy_of_what_it_began_with_once(tmp_path: Path) -> None:
    sweep = {"space": {"train.lr": [0.1, 0.2]}, "sampler": {"kind": "random"}, "scheduler": {"kind": "pbt", "size": 2, "share": 0.5}}
    found = search(tmp_path, sweep | {"budget": {"energy_kwh": 9}}, train={"energy": True, "zero": {"stage": 1}})
    for loss in (1.0, 2.0):
        following = found.next()
        assert following is not None
        metrics = {"validations": 1.0, "validation.loss": loss, "validation.energy_kwh": 0.2, "train.steps": 4.0}
        found.ended(following[0], following[1].model_copy(update={"end": "stopped", "metrics": metrics}))
    following = found.next()
    assert following is not None and following[1].parent == 1
    assert found.points.energy_kwh() == pytest.approx(0.4)  # it has not told of any yet
    found.reported(*following, {"validations": 2, "validation.loss": 0.9, "validation.energy_kwh": 0.3})
    assert found.points.energy_kwh() == pytest.approx(0.5)


def test_the_front_of_several_objectives(tmp_path: Path) -> None:
    found = search(tmp_path, GRID | {"objectives": {"validation.loss": "min", "validation.accuracy": "max"}})
    for loss, accuracy in ((1.0, 0.5), (2.0, 0.9), (2.0, 0.4), (1.0, 0.5)):
        end(found, loss=loss, accuracy=accuracy)
    assert [point.trials[0].point for point in found.points.front()] == [1, 4, 2]
    assert [row["front"] for row in csv.DictReader(io.StringIO(found.points.table(found.spec.space)))] == ["1", "1", "0", "1"]


def test_what_is_alike_in_the_first_objective_is_ranked_by_the_next(tmp_path: Path) -> None:
    found = search(tmp_path, GRID | {"objectives": {"validation.accuracy": "max", "validation.loss": "min"}})
    for loss, accuracy in ((3.0, 0.9), (1.0, 0.9), (2.0, 0.9), (0.5, 0.8)):
        end(found, loss=loss, accuracy=accuracy)
    assert [point.trials[0].point for point in found.points.ranked()] == [2, 3, 1, 4]
    assert [point.trials[0].point for point in found.points.front()] == [2, 4] and found.winner().train.global_batch == 16


def test_nothing_finished(tmp_path: Path) -> None:
    found = search(tmp_path, GRID | {"budget": {"trials": 1}})
    end(found)
    with pytest.raises(UserError, match=r"no trial of 1 points was finished. it burnt."):
        found.winner()


def test_values_that_are_wrong_together(tmp_path: Path) -> None:
    found = search(tmp_path, {"space": {"train.global_batch": [2, 4], "train.micro_batch": [2, 4]}, "sampler": {"kind": "grid"}})
    tried = []
    while (following := found.next()) is not None:
        tried.append(following[1].values)
        found.ended(following[0], following[1].model_copy(update={"end": "stopped"}))
    assert {"train.global_batch": 2, "train.micro_batch": 4} not in tried and len(tried) == 3
    assert "2 samples cannot be dealt to 1 workers" in found.points[1].trials[0].error


def test_a_metric_that_did_not_come(tmp_path: Path) -> None:
    found = search(tmp_path, GRID)
    end(found, accuracy=0.5)
    assert found.points[0].trials[0].error == "no validation.loss was reported."


def test_begun_again(tmp_path: Path) -> None:
    first = search(tmp_path, {"space": {"train.lr": {"loguniform": [1e-4, 1e-1]}}, "budget": {"trials": 5}})
    done = [end(first, loss=2.0), end(first, loss=1.0)]
    running = first.next()
    assert running is not None
    second = search(tmp_path, {"space": {"train.lr": {"loguniform": [1e-4, 1e-1]}}, "budget": {"trials": 4}}, "again")
    assert [point.trials[0].values for point in second.points[:2]] == [pytest.approx(trial.values) for trial in done]
    following = second.next()
    assert following is not None and following[1].values == pytest.approx(running[1].values)
    second.ended(following[0], following[1].model_copy(update={"end": "stopped"}))
    end(second, loss=3.0)
    assert second.next() is None and second.winner().train.lr == pytest.approx(done[1].values["train.lr"])


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_what_is_begun_again_draws_nothing_twice(tmp_path: Path, sampler: str) -> None:
    sweep = {"space": {"train.lr": {"loguniform": [1e-4, 1e-1]}}, "sampler": {"kind": sampler}}
    first = search(tmp_path, sweep | {"budget": {"trials": 4}})
    drawn = [end(first, loss=1.0 + number).values["train.lr"] for number in range(4)]
    second = search(tmp_path, sweep | {"budget": {"trials": 8}}, "again")
    drawn += [end(second, loss=2.0).values["train.lr"] for _ in range(4)]
    assert second.next() is None and len(set(drawn)) == 8


def test_one_run_at_a_time_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = search(tmp_path, GRID)
    monkeypatch.setattr(runner, "LEASE_TIMEOUT_S", 0.1)
    said: list[str] = []
    with Lease(found.storage, "another", 1.0, said.append, said.append), pytest.raises(Busy, match="another run"):
        run(found.job, SimpleNamespace(id="run", stop=said.append), found.context, nullcontext, lambda: 1)  # type: ignore[arg-type]
    assert search(tmp_path, GRID, "again").next() is not None, "the lease is no trial"


def test_the_score_that_stops_a_trial_is_on_its_curve(tmp_path: Path) -> None:
    found = search(tmp_path, {"space": {"train.lr": {"loguniform": [1e-4, 1e-1]}}, "scheduler": {"kind": "asha"}})
    following = found.next()
    assert following is not None
    point, trial = following
    known = {"validations": 1.0, "validation.loss": 3.0}
    found.ended(point, trial.model_copy(update={"end": "stopped", "metrics": known}))
    assert point.trials[0].curve == (known,) and found.study.study.trials[0].intermediate_values == {1: 3.0}


def test_the_mean_of_the_seeds_counts(tmp_path: Path) -> None:
    found = search(tmp_path, GRID | {"repeats": 2, "budget": {"trials": 2}})
    seeds = []
    for loss in (1.0, 5.0, 2.0, 2.0):
        trial = end(found, loss=loss)
        seeds.append(found.trial_job(trial).seed)
    assert seeds == [17, 18, 17, 18] and [point.mean("validation.loss") for point in found.points.ranked()] == [2.0, 3.0]
    assert found.winner().train.global_batch == 16 and found.winner().seed == 17
    rows = list(csv.DictReader(io.StringIO(found.points.table(found.spec.space))))
    assert [row["validation.loss.mean"] for row in rows] == ["3.0", "3.0", "2.0", "2.0"]
    assert [float(row["validation.loss.std"]) for row in rows] == pytest.approx([8**0.5, 8**0.5, 0.0, 0.0])
    text = write(found, tmp_path).read_text(encoding="utf-8")
    assert "2.0000 ± 0" in text and "3.0000 ± 2.8284" in text


POPULATION = {"space": {"train.lr": {"loguniform": [1e-4, 1e-1]}}, "sampler": {"kind": "random"}, "scheduler": {"kind": "pbt", "size": 3}}


def generation(found: Search, steps: int, *losses: float | None, last: bool = False) -> list[Trial]:
    """The next ones of a population, all begun before the first ends."""
    begun = [following for _ in losses if (following := found.next())]
    assert found.next() is None and found.more
    trials = []
    for (point, trial), loss in zip(begun, losses, strict=True):
        metrics = {} if loss is None else {"validation.loss": loss, "train.steps": float(steps)}
        end = "failed" if loss is None else "finished" if last else "stopped"
        trials.append(trial.model_copy(update={"end": end, "metrics": metrics}))
        found.ended(point, trials[-1])
    return trials


def test_a_population(tmp_path: Path) -> None:
    found = search(tmp_path, POPULATION)
    first = generation(found, 10, 3.0, 1.0, 2.0)
    second = generation(found, 20, 1.5, 2.0, None)
    assert [trial.parent for trial in second] == [2, 2, 3] and second[0].start == first[1].start and second[1].phases == ()
    assert second[0].phases[0].after == 10 and second[0].values == {"train.lr": second[0].phases[0].lr}
    assert [found.until(trial) for trial in (*first, *second)] == [1, 1, 1, 2, 2, 2]

    again = search(tmp_path, POPULATION, "again")  # goes on where the other was left
    assert [point.end for point in again.points] == ["stopped"] * 5 + ["failed"]
    third = generation(again, 25, 1.2, 1.3, 1.1, last=True)
    assert [trial.parent for trial in third] == [4, 5, 4] and [phase.after for phase in third[2].phases] == [10, 20]
    assert again.next() is None and not again.more
    winner = again.winner()
    assert winner.train.lr == first[1].values["train.lr"] and winner.train.phases == third[2].phases
    assert winner.train.at(9).lr == winner.train.lr and winner.train.at(20).lr == third[2].values["train.lr"]
    table = list(csv.DictReader(io.StringIO(again.points.table(again.spec.space))))
    assert [row["parent"] for row in table] == ["", "", "", "2", "2", "3", "4", "5", "4"]
    page = write(again, tmp_path).read_text(encoding="utf-8")
    assert "The members" in page


def test_a_member_whose_loss_is_no_number_fails(tmp_path: Path) -> None:
    found = search(tmp_path, POPULATION)
    generation(found, 10, math.nan, 1.0, 2.0)
    assert [point.end for point in found.points[:3]] == ["failed", "stopped", "stopped"]


def test_a_population_that_died_out(tmp_path: Path) -> None:
    found = search(tmp_path, POPULATION)
    generation(found, 10, None, None, None)
    assert found.next() is None and not found.more


@pytest.mark.parametrize(
    ("sweep", "train", "wrong"),
    [
        ({"space": {"train.global_batch": [8, 16]}}, {}, "train.global_batch cannot change while a model trains. There are train.lr"),
        ({"space": {"train.lr": {"choice": [1.0], "when": {"train.l1": 0.0}}}}, {}, "pbt takes no `when`"),
        ({"space": {"train.lr": [1.0]}, "scheduler": {"kind": "pb2"}}, {}, "pb2 is for ranges"),
        ({"repeats": 2}, {}, "the members of a population are one trial each"),
        ({"budget": {"trials": 4}}, {}, "set scheduler.size"),
        ({"space": {"train.lr": [1.0]}, "sampler": {"kind": "grid"}}, {}, "a grid is no way to begin a population"),
        ({}, {"early_stopping": {"patience": 2}}, "Drop train.early_stopping"),
        ({}, {"phases": [{"after": 2, "lr": 1}, {"after": 2, "lr": 2}]}, "phases out of order"),
    ],
)
def test_mistakes_with_a_population(tmp_path: Path, sweep: dict[str, Any], train: dict[str, Any], wrong: str) -> None:
    with pytest.raises(SpecError) as caught:
        job(tmp_path, POPULATION | sweep, train=train)
    assert wrong in str(caught.value)


@pytest.mark.parametrize(
    ("objective", "split", "wrong"),
    [
        ("validation.loss", {"validation": 0.0}, "validation.loss needs a validation split"),
        ("evaluate.loss", {"test": 0.0}, "evaluate.loss needs a test split"),
    ],
)
def test_objectives_need_rows(tmp_path: Path, objective: str, split: dict[str, float], wrong: str) -> None:
    with pytest.raises(SpecError, match=wrong):
        data = {"sources": [{"kind": "text", "path": "text.txt"}], "split": split}
        job(tmp_path, {"space": {"train.lr": [1e-3, 1e-2]}, "objectives": {objective: "min"}}, data=data)


def test_a_score_that_is_no_number_never_wins(tmp_path: Path) -> None:
    found = search(tmp_path, {"space": {"train.lr": [1e-3, 1e-2]}, "sampler": {"kind": "grid"}})
    for loss in (math.nan, 2.0):
        following = found.next()
        assert following is not None
        point, trial = following
        found.ended(point, trial.model_copy(update={"end": "finished", "metrics": {"validation.loss": loss}}))
    assert [point.end for point in found.points] == ["failed", "finished"]
    assert found.points[0].trials[0].error == "validation.loss is nan." and found.winner().train.lr == 1e-2


def test_a_seed_without_a_number_has_no_spread(tmp_path: Path) -> None:
    found = search(tmp_path, GRID | {"repeats": 2, "budget": {"trials": 1}})
    for loss in (math.nan, 2.0):
        end(found, loss=loss)
    rows = list(csv.DictReader(io.StringIO(found.points.table(found.spec.space))))
    assert [row["end"] for row in rows] == ["failed", "finished"] and [row["validation.loss.std"] for row in rows] == ["", ""]
    assert write(found, tmp_path).exists()


def test_a_population_begins_elsewhere_than_other_searches(tmp_path: Path) -> None:
    """Their trainings would be past its exchanges."""
    plain = {"space": POPULATION["space"], "sampler": POPULATION["sampler"]}
    other = POPULATION | {"scheduler": {"kind": "pbt", "size": 3, "every": 2}}
    begun = []
    for place, sweep in enumerate((plain, POPULATION, other)):
        (tmp_path / str(place)).mkdir()
        begun.append(search(tmp_path / str(place), sweep).next())
    assert len({following[1].start["train.lr"] for following in begun if following}) == 3


@pytest.mark.parametrize(
    ("path", "settled"),
    [("train.lr", True), ("train.gradient_checkpointing", False), ("train", False), ("model.lora", False), ("task", False)],
)
def test_a_trial_asks_its_model_itself_where_it_has_one_of_its_own(path: str, settled: bool) -> None:
    assert SweepSpec.parse({"space": {path: [1, 2]}, "sampler": {"kind": "grid"}}, "sweep").of_one_model == settled

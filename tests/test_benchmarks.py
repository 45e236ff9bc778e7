"""The benchmarks' own code: what they print and how they compute it, without a measurement."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybm.spec.train import TrainSpec
from raybm.training.batches import Schedule

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
EVALUATION = {
    "test": {"rows": 10, "macro_f1": 0.86},
    "slices": {"amazon": {"rows": 5, "macro_f1": 0.82}},
    "baseline": {"test": {"macro_f1": 0.77}, "slices": {"amazon": {"macro_f1": 0.64}}},
}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def imported(name: str) -> ModuleType:
        return importlib.import_module(name)

    return imported


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON object on the last line: numbers, and their details under `cases` and `load`."""
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"cases", "load"} <= result.keys()
    assert all(isinstance(value, float | int) for key, value in result.items() if key not in ("cases", "load"))
    return result


NAMES = ("sentiment", "start", "train_overhead", "train_throughput", "learning", "tasks", "zero_memory", "plan")
SWEEPS = ("sweep_quality", "sweep_overhead", "sweep_faults", "pbt")


@pytest.mark.parametrize("name", (*NAMES, *SWEEPS))
def test_says_what_it_measures(name: str) -> None:
    out = subprocess.run([sys.executable, BENCHMARKS / f"{name}.py", "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert "Prints" in out.stdout


def test_missing_data_is_an_error(tmp_path: Path, load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("data: {sources: [{kind: tsv, path: /nowhere/rows.tsv}]}")
    with pytest.raises(SystemExit) as ended:
        load("common").require_data(job)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "/nowhere/rows.tsv is missing" in line


def test_sentiment_reports_means_over_seeds(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentiment = load("sentiment")
    settings: list[dict[str, Any]] = []

    def run_job(job: Path, storage: Path, given: dict[str, Any]) -> Path:
        settings.append(given)
        scores = EVALUATION | {"test": {"rows": 10, "macro_f1": 0.85 + 0.01 * given["seed"]}}
        (tmp_path / "evaluation.json").write_text(json.dumps(scores))
        return tmp_path

    monkeypatch.setattr(sentiment.common, "run_job", run_job)
    monkeypatch.setattr(sentiment.common, "artifact", lambda run, stage: tmp_path)
    monkeypatch.setattr(sentiment.common, "require_data", lambda job: None)
    monkeypatch.setattr(sys, "argv", ["sentiment.py", "--seeds", "1", "3", "--set", "train.epochs=1"])
    sentiment.main()
    result = printed(capsys)
    assert (result["macro_f1"], result["linear_macro_f1"], result["amazon_macro_f1"]) == (0.87, 0.77, 0.82)
    assert [each["train.epochs"] for each in settings] == ["1", "1"]


def test_start_reports_the_slowest_case(load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    start = load("start")
    monkeypatch.setattr(start.common, "require_data", lambda job: None)
    monkeypatch.setattr(start.common, "run", lambda command, **_: "1.5")
    monkeypatch.setattr(start, "first_step", lambda job, storage: 20.0 if job.stem == "smoke" else 30.0)
    monkeypatch.setattr(start, "first_answer", lambda place: 25.0)
    monkeypatch.setattr(sys, "argv", ["start.py", "--runs", "1"])
    start.main()
    result = printed(capsys)
    assert {"cli_help_s", "validate_s", "ray_up_s", "fit_to_first_step_s", "deploy_to_first_answer_s"} < result.keys()
    assert (result["ray_up_s"], result["fit_to_first_step_s"]) == (1.5, 30.0)


LENGTHS = np.random.default_rng(3).integers(3, 60, 100)
PEERS = ("rows", "trainer")  # read the case when they are imported


@pytest.fixture
def peers(load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Given an order, or none, the modules `rows` and `trainer` of benchmarks/peers/ on a case of rows of the token row + 1."""
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))

    def imported(order: list[list[list[int]]] | None) -> list[ModuleType]:
        ids = [[row + 1] * int(length) for row, length in enumerate(LENGTHS)]
        pq.write_table(pa.table({"input_ids": ids, "labels": [[row % 2] for row in range(len(ids))]}), tmp_path / "rows.parquet")
        case = {"rows": str(tmp_path / "rows.parquet"), "pad": 0, "one_label": True, "window": 10}
        (tmp_path / "case.json").write_text(json.dumps(case | ({"order": order} if order else {"sampling": "random"})))
        monkeypatch.setattr(sys, "argv", ["trainer.py", str(tmp_path / "case.json")])
        return [load(name) for name in PEERS]

    yield imported
    for name in PEERS:
        sys.modules.pop(name, None)


def accelerates(trainer: ModuleType, size: int, rank: int) -> list[dict[str, Any]]:
    """A rank's batches of so many items, as accelerate deals what Trainer's sequential sampler gives."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    items, timed = trainer.Dealt(), trainer.Timed()
    shard = BatchSamplerShard(BatchSampler(SequentialSampler(items), size, drop_last=False), num_processes=2, process_index=rank)
    return [timed.batch([items[place] for place in places]) for places in shard]


def rows_in(batch: dict[str, Any]) -> list[int]:
    return [token - 1 for token in batch["input_ids"][:, 0].tolist()]


def test_all_sides_of_a_training_race_deal_the_same_rows_to_a_rank(load: Any, peers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    split: Any = SimpleNamespace(sizes=LENGTHS, lengths=LENGTHS)
    schedule, steps = Schedule.of(TrainSpec(global_batch=16), split, 2, seed=17), 8  # of seven the last is smaller
    order = load("race").dealt(schedule, steps)
    rows, trainer = peers(order)
    assert any(len(first) != len(second) for first, second in order)
    for rank in range(2):
        ours = [[row for part in schedule.step(step, rank) for row in part] for step in range(steps)]
        monkeypatch.setattr(rows.dist, "get_rank", lambda rank=rank: rank)
        assert [rows_in(batch) for batch in rows.batches()] == ours
        assert [rows_in(batch) for batch in accelerates(trainer, 1, rank)] == ours


def test_trainer_deals_rows_itself_where_no_order_is_given(peers: Any) -> None:
    _, trainer = peers(None)
    first, second = ([rows_in(batch) for batch in accelerates(trainer, 10, rank)] for rank in range(2))
    assert (first[0], second[0]) == (list(range(10)), list(range(10, 20)))
    assert {row for batch in first + second for row in batch} == set(range(100))


def test_a_step_of_several_passes_is_no_race(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load("race").dealt(Schedule(LENGTHS, 16, 2, seed=17, micro_batch=4), 1)
    assert ended.value.code == 2
    assert "several passes" in capsys.readouterr().err


def test_train_overhead_takes_each_windows_median(load: Any) -> None:
    race = load("race")
    case = {"tokens": [100] * 3 * race.WINDOW}  # the first window is not counted
    assert race.tokens_per_s(case, [[1.0, 9.0], [1.0, 1.0], [7.0, 1.0]]) == 1000.0


def test_train_overhead_reports_the_worse_case(load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    overhead = load("train_overhead")
    monkeypatch.setattr(overhead.common, "require_data", lambda job: None)
    found = {"sentiment_minilm": 0.99, "pretrain_tiny": 0.98}
    monkeypatch.setattr(overhead, "measure", lambda path, *_: {"vs_ddp_loop": 2 - found[path.stem], "vs_deepspeed_loop": found[path.stem]})
    monkeypatch.setattr(sys, "argv", ["train_overhead.py"])
    overhead.main()
    result = printed(capsys)
    assert (result["vs_ddp_loop"], result["vs_deepspeed_loop"]) == (1.01, 0.98)

"""Evaluate: the task's loss and the engine's predictions on the test split and on every slice, beside a linear baseline.

One Ray Data execution whose items are the prepared Parquet files. An actor holds the model twice where both are asked for: as
the task knows it, for the loss, and as the engine that will serve it, for the predictions.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from raybm.core.artifact import Artifact
from raybm.core.context import Context
from raybm.core.errors import DataError
from raybm.core.spec import Spec
from raybm.core.storage import Storage, arrow_errors
from raybm.data.execution import batches, from_items
from raybm.engines.offline import ask
from raybm.engines.transformers.spec import Transformers
from raybm.models.spec import ModelSpec
from raybm.spec.job import LATENCY, EvaluateSpec
from raybm.tasks import TaskSpec

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "evaluate"
INPUTS = ("prepare", "train")
CODE = ("core", "models", "engines", "tasks", "stages/evaluate.py")
ON_RAY = True
outside = None


PASS_TOKENS = 2048
"""Padded tokens of a loss pass: a language model's logits take 200 kB a token (fp32, 50k words)."""
REPORT_ROWS = 250
"""Predictions that come back in one piece; a slow generator has to make them within the stall timeout."""
LATENCY_ROWS, LATENCY_S = 32, 5.0
"""Rows of which each is asked alone, and for how long at the most."""
BASELINE_ROWS = 100_000
"""Training rows of the baseline at most."""
BASELINE_BYTES = 2_000_000_000
"""In memory, of these rows, about."""

logger = logging.getLogger(__name__)


class View(Spec):
    seed: int
    task: TaskSpec
    model: ModelSpec
    evaluate: EvaluateSpec


@dataclass
class Tally:
    """What came back of one split."""

    loss: float = 0.0
    correct: float = 0.0
    units: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    latency_ms: float | None = None

    def add(self, report: Mapping[str, Any]) -> None:
        self.loss += report.get("loss", 0.0)
        self.correct += report.get("correct") or 0.0
        self.units += report.get("units", 0)
        self.rows += report.get("rows", [])
        self.predictions += report.get("predictions", [])
        self.latency_ms = report.get(LATENCY, self.latency_ms)


def run(view: View, inputs: Mapping[str, Artifact], out: Artifact, context: Context) -> dict[str, Any]:
    """Raises DataError where there is no row to evaluate on."""
    prepared, trained = inputs["prepare"], inputs["train"]
    dataset = json.loads(prepared.storage.read("dataset.json"))
    splits = [split for split, rows in dataset["rows"].items() if rows and (split == "test" or split.startswith("slice-"))]
    if not splits:
        raise DataError("there is no test split.", where="evaluate", remedy="Give data.split.test a share, or drop `evaluate`.")
    task, labels = view.task.build(), dataset["labels"]
    tallies = _measure(view, prepared, trained, labels, splits, context)
    scored = {split: _scores(task, view.task.METRICS, tally, labels, dataset["rows"][split]) for split, tally in tallies.items()}
    result = _by_split(scored)
    if view.task.PREDICTS and view.evaluate.baseline and (beside := _baseline(view, prepared, tallies, labels, context)):
        result["baseline"] = _by_split(beside)
    out.storage.write("evaluation.json", (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    _write_predictions(out, tallies)
    _tell(view, result, context)
    for split, scores in scored.items():
        context.events.emit("evaluate", split=split, **_numbers(scores))
    metrics = _numbers(result.get("test", {})) | {"slices": {name: _numbers(scores) for name, scores in result["slices"].items()}}
    return metrics | ({"baseline": _numbers(result["baseline"].get("test", {}))} if "baseline" in result else {})


def _measure(
    view: View, prepared: Artifact, trained: Artifact, labels: Sequence[str], splits: Sequence[str], context: Context
) -> dict[str, Tally]:
    predicts = view.task.PREDICTS
    items = [("predict", split, key) for split in splits for key in prepared.storage.keys(f"rows/{split}") if predicts]
    items += [("latency", "test", item[2]) for item in items if item[1] == "test"][:1]
    # Of a slice that is predicted on, the loss is left out: it would take as long again and says less than the scores.
    items += [
        ("loss", split, key) for split in splits for key in prepared.storage.keys(f"encoded/{split}") if split == "test" or not predicts
    ]
    tallies = {split: Tally() for split in splits}
    context.progress(f"evaluate: {', '.join(splits)}")
    given = view.canonical(), prepared, trained, tuple(labels), context.storage
    if context.alone:
        evaluator = Evaluator(*given)
        for split, report in (made for item in items for made in evaluator.reports(*item)):
            tallies[split].add(report)
        return tallies
    data = from_items(items).map_batches(
        Evaluator,
        fn_constructor_args=given,
        batch_size=1,  # with GPUs Ray Data wants a number
        batch_format="pyarrow",
        **_placement(context.resources, len(items)),
    )
    for table in batches(data, NAME):
        for report in map(json.loads, table.column("report").to_pylist()):
            tallies[report["split"]].add(report)
    return tallies


def _placement(resources: Any, items: int) -> dict[str, Any]:
    """The training's resources: a worker's GPU each, or as few actors as the CPUs of a node allow (each loads the model)."""
    import ray
    import ray.data

    cpus, gpus = resources.workers * resources.cpus_per_worker, resources.gpus_per_worker
    if gpus:
        actors, each = resources.workers, {"num_cpus": resources.cpus_per_worker, "num_gpus": gpus}
    else:
        largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=1)
        each = {"num_cpus": max(1, min(cpus, largest))}
        actors = int(cpus // each["num_cpus"])
    if gpus and resources.accelerator_type:
        each["accelerator_type"] = resources.accelerator_type
    return {"compute": ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(actors, items))), **each}


class Evaluator:
    """In the actor: prepared files → sums of the loss, or rows with predictions."""

    def __init__(
        self, view: dict[str, Any], prepared: Artifact, trained: Artifact, labels: Sequence[str], storage: Storage | None = None
    ) -> None:
        self.view = View.parse(view, NAME)
        self.prepared, self.trained, self.labels, self.storage = prepared, trained, labels, storage

    def __call__(self, table: pa.Table) -> Iterator[dict[str, list[str]]]:
        for item in table.column("item").to_pylist():
            for split, report in self.reports(*json.loads(item)):
                yield {"report": [json.dumps({"split": split, **report})]}

    def reports(self, what: str, split: str, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The split, and a part of what it gives."""
        import pyarrow.parquet as pq

        rows = pq.read_table(io.BytesIO(self.prepared.storage.read(key)))
        ways = {"predict": self._predict, "latency": self._latency, "loss": self._loss}
        for report in ways[what](rows.to_pylist()):
            yield split, report

    @cached_property
    def task(self) -> Any:
        return self.view.task.build()

    @cached_property
    def engine(self) -> Any:
        self._use_the_cpus_given()
        batch = self.view.evaluate.batch
        return Transformers(max_batch=batch, max_waiting=2 * batch).build(self.trained.folder("model"))

    @cached_property
    def model(self) -> tuple[Any, Any, Any]:
        """The task's model, its processor and its device."""
        import torch

        from raybm.models import processors
        from raybm.models.references import resolve

        self._use_the_cpus_given()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        processor = processors.load(self.view.task.INPUT, self.prepared.folder("processor"))
        model = self.task.model(self.trained.folder("model"), {}, self.labels, processor)
        self.task.compare(model, lambda: resolve(self.view.model.ref, self.storage), processor)
        return model.to(device).eval(), processor, device

    def _use_the_cpus_given(self) -> None:
        import torch
        from transformers import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        torch.set_num_threads(max(1, min(int(os.environ.get("OMP_NUM_THREADS", "1")), os.cpu_count() or 1)))

    def _predict(self, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for start in range(0, len(rows), REPORT_ROWS):
            part = rows[start : start + REPORT_ROWS]
            yield {"rows": part, "predictions": self.task.predict(part, self._ask)}

    def _latency(self, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Of a row that is asked alone, the median."""
        if not rows:
            return
        self.task.predict(rows[:1], self._ask)
        end, seconds = time.perf_counter() + LATENCY_S, list[float]()
        for row in rows[:LATENCY_ROWS]:
            began = time.perf_counter()
            self.task.predict([row], self._ask)
            seconds.append(time.perf_counter() - began)
            if time.perf_counter() > end:
                break
        yield {LATENCY: 1000 * statistics.median(seconds)}

    def _ask(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return ask(self.engine, rows, self.view.evaluate.batch, self.view.evaluate.max_tokens)

    def _loss(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        import torch

        model, processor, device = self.model
        for part in _passes(rows, self.view.evaluate.batch):
            batch = {name: tensor.to(device) for name, tensor in self.task.collate(part, processor).items()}
            with torch.inference_mode():
                loss = self.task.loss(model, batch)
            correct = None if loss.correct is None else float(loss.correct)
            yield {"loss": float(loss.total), "correct": correct, "units": int(self.task.units(batch))}


def _passes(rows: Sequence[Mapping[str, Any]], batch: int) -> Iterator[list[Mapping[str, Any]]]:
    """Rows of like length together, within `batch` rows and PASS_TOKENS padded tokens."""
    part: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=_length, reverse=True):
        if part and (len(part) == batch or _length(part[0]) * (len(part) + 1) > PASS_TOKENS):
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _length(row: Mapping[str, Any]) -> int:
    """Of the longest of its sequences."""
    return max([1, *(len(numbers) for name, numbers in row.items() if name.endswith(("_ids", "labels")))])


# ---- from sums and predictions to scores


def _scores(task: Any, metrics: Sequence[str], tally: Tally, labels: Sequence[str], rows: int) -> dict[str, Any]:
    """What the sums say, as far as the task names it, and what it makes of predictions."""
    scores: dict[str, Any] = {"rows": rows}
    if tally.units:
        scores["loss"] = tally.loss / tally.units
        scores |= {name: tally.correct / tally.units for name in ("accuracy", "token_accuracy") if name in metrics}
        scores |= {"tokens": tally.units, "perplexity": math.exp(min(scores["loss"], 700))} if "perplexity" in metrics else {}
    scores |= {} if tally.latency_ms is None else {LATENCY: tally.latency_ms}
    return scores | (task.score(tally.predictions, tally.rows, labels) if tally.predictions else {})


def _by_split(scored: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    slices = {split.removeprefix("slice-"): scores for split, scores in scored.items() if split != "test"}
    return ({"test": scored["test"]} if "test" in scored else {}) | {"slices": slices}


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if isinstance(value, int | float)}


def _baseline(
    view: View, prepared: Artifact, tallies: Mapping[str, Tally], labels: Sequence[str], context: Context
) -> dict[str, dict[str, Any]]:
    """The task's simple model, trained on the same rows and scored on the same splits; {} where the task has none."""
    task = view.task.build()
    try:
        predict = task.baseline(_some_rows(prepared.storage, view.seed), labels, view.seed)
        if predict is None:
            return {}
        return {
            split: {"rows": len(tally.rows)} | task.score(predict(tally.rows), tally.rows, labels)
            for split, tally in tallies.items()
            if tally.rows
        }
    except ValueError as error:  # scikit-learn's: one class only, no words; the model's own scores stand without it
        context.progress(f"evaluate: no baseline: {error}")
        return {}


def _some_rows(storage: Storage, seed: int) -> list[dict[str, Any]]:
    """Of the training split: all, or as many drawn at random as a simple model can take in memory."""
    import numpy as np
    import pyarrow.parquet as pq

    keys = storage.keys("rows/train")
    sizes = []  # rows, and bytes in memory
    for key in keys:
        filesystem, path = storage.arrow(key)
        with arrow_errors(f"{storage.uri}/{key}"), filesystem.open_input_file(path) as file:
            about = pq.ParquetFile(file).metadata
            sizes.append((about.num_rows, sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))))
    total, size = (sum(each) for each in zip(*sizes, strict=True))
    most = min(BASELINE_ROWS, max(1, int(total * BASELINE_BYTES / max(1, size))))
    chosen = np.arange(total) if total <= most else np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
    rows: list[dict[str, Any]] = []
    start = 0
    for key, (count, _) in zip(keys, sizes, strict=True):
        here = chosen[(chosen >= start) & (chosen < start + count)] - start
        if len(here):
            rows += pq.read_table(io.BytesIO(storage.read(key))).take(here).to_pylist()
        start += count
    return rows


def _write_predictions(out: Artifact, tallies: Mapping[str, Tally]) -> None:
    """predictions.parquet: the rows with what was predicted beside them, but for vectors."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "split": split,
            **row,
            **{f"predicted_{name}": value for name, value in prediction.items() if name != "tokens" and not _vector(value)},
        }
        for split, tally in tallies.items()
        for row, prediction in zip(tally.rows, tally.predictions, strict=True)
    ]
    if rows:
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        out.storage.write("predictions.parquet", sink.getvalue())


def _vector(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], float)


def _tell(view: View, result: Mapping[str, Any], context: Context) -> None:
    baseline = result.get("baseline", {"slices": {}})
    named = {"test": (result.get("test"), baseline.get("test"))}
    named |= {name: (scores, baseline["slices"].get(name)) for name, scores in result["slices"].items()}
    for name, (scores, beside) in named.items():
        if scores:
            shown = [
                f"{metric} {scores[metric]:.4g}" + (f" (baseline {beside[metric]:.4g})" if beside and metric in beside else "")
                for metric in view.task.METRICS
                if metric in scores
            ]
            context.progress(f"evaluate: {name}, {scores['rows']:,} rows: {', '.join(shown[:3])}")

"""report.html: one page a run that needs nothing else, neither network nor script. What ran, what came out, from what."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from raybm.charts import Series, line_chart
from raybm.core.artifact import Artifact, Record
from raybm.core.errors import DataError, GateRefused, NotFound
from raybm.core.events import FILE as METRICS
from raybm.core.events import by_step, json_lines, read_events
from raybm.core.runs import read_state, states
from raybm.core.storage import Storage, open_storage
from raybm.pages import number, template
from raybm.plan.units import size
from raybm.stages.publish import check_gate

FILE = "report.html"
STAGES = ("prepare", "train", "evaluate", "publish")
BAD_SHOWN = 20
CONFUSIONS_SHOWN = 10
MATRIX_MAX = 60  # classes; beyond, only the most frequent confusions are readable
HEADLINES = ("macro_f1", "f1", "rmse", "chrf", "recall_at_1", "perplexity", "accuracy", "loss")
NO_SHARES = ("loss", "perplexity", "rmse", "mae", "bleu", "chrf")
SPLITS = ("train", "validation", "test")


def write(run_dir: Path, job: Mapping[str, Any], records: Mapping[str, Record]) -> Path:
    """Write the run's page from the records of the stages that are done (some may be missing) and its metrics.jsonl.

    `job` is the canonical spec; evaluation.json and bad_rows.jsonl are read from the artifacts. Returns the page's path.
    """
    root = open_storage(job["storage"])
    evaluation = _json(root, records, "evaluate", "evaluation.json") or {}
    scores, headline = list(_scores(evaluation)), _headline(job, evaluation)
    events = _events(root, run_dir, job) if "train" in records else []
    page = template("report.html.j2", size=size).render(
        job=job,
        run=run_dir.name,
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        stages=_stages(root, run_dir.name, records),
        gate=_gate(job, evaluation.get("test", {})),
        published=records["publish"].metrics if "publish" in records else None,
        data=records["prepare"].metrics if "prepare" in records else None,
        splits=_split_names(records),
        bad_rows=_bad_rows(root, records),
        bad_shown=BAD_SHOWN,
        train=records["train"].metrics if "train" in records else None,
        charts=_charts(events),
        scores=scores,
        metrics=_metrics(scores, headline),
        headline=headline,
        gaps=_gaps(scores, headline["name"] if headline else ""),
        sets=list(_sets(evaluation)),
        spec=yaml.safe_dump(dict(job), allow_unicode=True, sort_keys=False, width=100),
        records=records,
    )
    target = run_dir / FILE
    target.write_text(page, encoding="utf-8")
    return target


def finished(root: Storage, artifacts: Mapping[str, str]) -> dict[str, Record]:
    """The records behind a run's state (stage → key): what `write` needs for a run that failed on the way, at its gate for instance."""
    found = {stage: Artifact(root.at(f"artifacts/{stage}/{key}"), stage, key).record() for stage, key in artifacts.items()}
    return {stage: record for stage, record in found.items() if record}


# ---- what ran


def _stages(root: Storage, run: str, records: Mapping[str, Record]) -> list[dict[str, Any]]:
    try:
        began = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(read_state(root, run).started))
    except (NotFound, DataError):
        began = ""
    longest = max((record.seconds for record in records.values()), default=0) or 1
    return [
        {"record": record, "before": record.started[:19] < began, "share": record.seconds / longest}
        for record in (records[name] for name in STAGES if name in records)
    ]


def _events(root: Storage, run_dir: Path, job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The run's events. Where it resumed training, or found it done, those of the earlier runs that began it stand before."""
    events = read_events(run_dir / METRICS)
    runs = states(root)
    started = next((state.started for state in runs if state.run == run_dir.name), time.time())
    for state in runs:
        first = next((event["kind"] for event in events if event["kind"] in ("train", "resume")), None)
        if first == "train":
            break
        if state.started < started and state.job == job["name"]:
            try:
                spec = json.loads(root.read(f"runs/{state.run}/spec.json"))
                same = all(spec.get(section) == job[section] for section in ("seed", "task", "model", "data", "train"))
                if same and spec.get("resources", {}).get("workers") == job["resources"]["workers"]:
                    events = json_lines(root.read(f"runs/{state.run}/{METRICS}")) + events
            except NotFound:
                continue
    return events


def _charts(events: list[dict[str, Any]]) -> list[Markup]:
    steps, validations = by_step(events, "train"), by_step(events, "validate")

    def points(found: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
        return [(event["step"], event[name]) for event in found if event.get(name) is not None]

    both = [
        line_chart(
            name.capitalize(), [Series("training", points(steps, name), 1), Series("validation", points(validations, name), 2)], number
        )
        for name in ("loss", "accuracy")
    ]
    alone = [
        line_chart(title, [Series(title, points(steps, name), 1)], number, from_zero=True)
        for name, title in (
            ("lr", "Learning rate"),
            ("grad_norm", "Gradient norm"),
            ("tokens_per_s", "Tokens/s"),
            ("padding", "Share of padding in what was computed"),
            ("mfu", "Model FLOPs utilisation"),
            ("data_wait", "Share of time that waits for rows"),
        )
    ]
    return [chart for chart in (*both, *alone) if chart]


# ---- what came out


@dataclass(frozen=True)
class ScoreRow:
    """One line of the table of scores: what was scored on what."""

    split: str
    by: str
    scores: Mapping[str, Any]
    beside: Mapping[str, Any] | None = None
    """The baseline's, on the model's line."""


def _scores(evaluation: Mapping[str, Any]) -> Iterator[ScoreRow]:
    """The test split, then the slices; the baseline under the model."""
    baseline = evaluation.get("baseline") or {}
    for split, scores, beside in _splits(evaluation, baseline):
        yield ScoreRow(split, "model", scores, beside)
        if beside:
            yield ScoreRow(split, "baseline", beside)


def _metrics(scores: list[ScoreRow], headline: Mapping[str, Any] | None) -> list[str]:
    """The columns: rows, the headline, then all other numbers."""
    found = [name for row in scores for name, value in row.scores.items() if isinstance(value, int | float)]
    return list(dict.fromkeys(["rows", *([headline["name"]] if headline else []), *found])) if found else []


def _splits(
    evaluation: Mapping[str, Any], baseline: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any] | None]]:
    if "test" in evaluation:
        yield "test", evaluation["test"], baseline.get("test")
    for name, scores in (evaluation.get("slices") or {}).items():
        yield name, scores, (baseline.get("slices") or {}).get(name)


def _headline(job: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The number that the run is about: the gate's first metric, else the task's usual one."""
    test = evaluation.get("test") or {}
    gate = (job.get("publish") or {}).get("gate") or {}
    name = next((name for name in (*gate, *HEADLINES) if isinstance(test.get(name), int | float)), None)
    if name is None:
        return None
    return {"name": name, "value": test[name], "baseline": ((evaluation.get("baseline") or {}).get("test") or {}).get(name)}


def _gaps(scores: list[ScoreRow], metric: str) -> list[dict[str, Any]]:
    """By how many points the model is ahead of the baseline on each split; for metrics that are shares."""
    if metric in NO_SHARES:
        return []
    gaps = [
        (row.split, 100 * (row.scores[metric] - row.beside[metric]))
        for row in scores
        if row.beside and metric in row.scores and metric in row.beside
    ]
    return [{"split": split, "text": f"{gap:+.1f} points", "better": gap > 0} for split, gap in gaps]


def _gate(job: Mapping[str, Any], test: Mapping[str, Any]) -> list[dict[str, Any]]:
    rules = []
    for metric, rule in ((job.get("publish") or {}).get("gate") or {}).items():
        try:
            check_gate({metric: rule}, test)
            passed = True
        except GateRefused:
            passed = False
        rules.append({"metric": metric, "rule": rule, "value": test.get(metric), "passed": passed})
    return rules


def _sets(evaluation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What stands per class, for the test split and every slice that has it."""
    for name, scores, _ in _splits(evaluation, {}):
        if scores.get("per_class"):
            confusion, labels = scores.get("confusion") or [], scores.get("labels") or []
            yield {
                "name": name,
                "per_class": scores["per_class"],
                "labels": labels,
                "matrix": _matrix(confusion) if 1 < len(labels) <= MATRIX_MAX else [],
                "confusions": _confusions(confusion, labels),
            }


def _matrix(confusion: list[list[int]]) -> list[list[dict[str, float]]]:
    """Counts, with the share of the row (of the true class) that shades the cell."""
    return [[{"count": count, "share": count / (sum(row) or 1)} for count in row] for row in confusion]


def _confusions(confusion: list[list[int]], labels: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"truth": labels[i], "said": labels[j], "count": count, "share": count / (sum(row) or 1)}
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(found, key=lambda each: -each["count"])[:CONFUSIONS_SHOWN]


# ---- from the artifacts


def _read(root: Storage, records: Mapping[str, Record], stage: str, file: str) -> bytes | None:
    if stage not in records:
        return None
    try:
        return root.read(f"artifacts/{stage}/{records[stage].key}/{file}")
    except NotFound:
        return None


def _json(root: Storage, records: Mapping[str, Record], stage: str, file: str) -> Any:
    data = _read(root, records, stage, file)
    return None if data is None else json.loads(data)


def _split_names(records: Mapping[str, Record]) -> list[str]:
    """In the order of their use, the slices last."""
    rows = records["prepare"].metrics["rows"] if "prepare" in records else {}
    return sorted(rows, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))


def _bad_rows(root: Storage, records: Mapping[str, Record]) -> list[dict[str, Any]]:
    return json_lines(_read(root, records, "prepare", "bad_rows.jsonl") or b"")[:BAD_SHOWN]

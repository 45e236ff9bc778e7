from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from raybm import report
from raybm.charts import Series, line_chart, ticks
from raybm.core.artifact import Artifact, Record
from raybm.core.events import Events
from raybm.core.storage import Storage, open_storage
from raybm.spec import JobSpec

LABELS = [f"class {i}" for i in range(20)] + ["体育新闻", "<script>alert(1)</script>"]


def job(storage: Path, **changes: Any) -> dict[str, Any]:
    spec = {
        "name": "reviews",
        "storage": str(storage),
        "task": {"kind": "text_classification"},
        "model": {"ref": "package:minilm"},
        "data": {"sources": [{"kind": "tsv", "path": "reviews.tsv"}]},
        "publish": {"gate": {"macro_f1": ">= 0.80", "accuracy": ">= 0.99"}},
    }
    return JobSpec.parse(spec | changes).canonical()


def record(stage: str, metrics: dict[str, Any], started: str = "2026-01-02T03:04:05+00:00") -> Record:
    return Record(
        stage=stage,
        key=f"{stage}key",
        inputs={},
        view={},
        code="c0de",
        versions={"torch": "2.13.0"},
        metrics=metrics,
        started=started,
        seconds=83.4,
    )


def prepared() -> Record:
    return record(
        "prepare",
        {
            "labels": LABELS,
            "rows": {"train": 4000, "validation": 500, "test": 1500, "slice-amazon": 3000},
            "tokens": {"train": 103_000, "validation": 12_000, "test": 40_000, "slice-amazon": 90_000},
            "dropped": {"exact_dedup": 77},
            "bad": 2,
            "read": 9079,
            "sources": [{"path": "reviews.tsv", "sha256": "ab" * 32, "bytes": 123456, "rows": 9079}],
        },
    )


def trained() -> Record:
    return record(
        "train",
        {
            "steps": 250,
            "epochs": 2.0,
            "train_loss": 0.31,
            "tokens": 206_000,
            "seconds": 165.0,
            "tokens_per_s": 1248.5,
            "workers": 2,
            "validation": {"loss": 0.35, "accuracy": 0.86},
            "published_step": 250,
            "parameters": 22_700_000,
            "mfu": 0.1249,
            "profile": {"communication": 0.31, "weights": 90_852_864, "gradients": 0, "optimizer": 136_000_000, "peak": 1_400_000_000},
        },
    )


def scores(accuracy: float) -> dict[str, Any]:
    dice = random.Random(3)
    confusion = [
        [sum(dice.random() < accuracy for _ in range(60)) if i == j else int(dice.random() * 5 * (1 - accuracy) * 2) for j in range(22)]
        for i in range(22)
    ]
    each = {
        label: {"precision": accuracy, "recall": accuracy - 0.01, "f1": dice.uniform(0.5, 1), "support": sum(row)}
        for label, row in zip(LABELS, confusion, strict=True)
    }
    return {
        "rows": 1500,
        "loss": 0.38,
        "accuracy": accuracy,
        "macro_f1": accuracy - 0.001,
        "per_class": each,
        "confusion": confusion,
        "labels": LABELS,
    }


def plain(accuracy: float) -> dict[str, Any]:
    return {"rows": 1500, "accuracy": accuracy, "macro_f1": accuracy}


EVALUATION = {
    "test": scores(0.861),
    "slices": {"amazon": scores(0.83)},
    "baseline": {"test": plain(0.775), "slices": {"amazon": plain(0.64)}},
}


def train_events(folder: Path, steps: range) -> None:
    events = Events(folder)
    for step in steps:
        events.emit(
            "train",
            step=step,
            steps=250,
            epoch=step / 125,
            lr=1e-4 * (1 - step / 250),
            grad_norm=1.0,
            loss=2.7 * 0.99**step + 0.1,
            accuracy=1 - 0.9 * 0.99**step,
            units=32,
            seconds=1.0,
            tokens_per_s=1200.0 + step,
        )
        if step % 50 == 0:
            events.emit("validate", step=step, loss=0.1 + 2.8 * 0.99**step, accuracy=0.9 - 0.8 * 0.99**step, units=500)


def state(root: Storage, run: str, started: float) -> None:
    running = {"run": run, "job": "reviews", "state": "succeeded", "started": started, "heartbeat": started, "host": "h", "pid": 1}
    root.write(f"runs/{run}/state.json", json.dumps(running).encode())


def finished(tmp_path: Path) -> tuple[Path, dict[str, Any], dict[str, Record]]:
    root = open_storage(str(tmp_path))
    run_dir = tmp_path / "runs" / "reviews-2"
    state(root, "reviews-2", 1767322000.0)  # 2026-01-02 02:46:40 UTC
    train_events(run_dir, range(10, 260, 10))
    root.write("artifacts/evaluate/evaluatekey/evaluation.json", json.dumps(EVALUATION).encode())
    bad = [
        {"file": "reviews.tsv", "line": 17, "reason": "no text"},
        {"file": "reviews.tsv", "line": 18, "reason": "label '<b>' is unknown"},
    ]
    root.write("artifacts/prepare/preparekey/bad_rows.jsonl", "".join(json.dumps(row) + "\n" for row in bad).encode())
    records = {
        "prepare": prepared(),
        "train": trained(),
        "evaluate": record("evaluate", {}),
        "publish": record("publish", {"name": "reviews", "version": 3, "uri": "/r/3", "alias": "prod"}),
    }
    return run_dir, job(tmp_path), records


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_shows_what_ran_and_what_came_out(tmp_path: Path) -> None:
    run_dir, spec, records = finished(tmp_path)
    path = report.write(run_dir, spec, records)
    assert path == run_dir / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    for said in (
        "✓ gate: macro F1 0.8600 is >= 0.80",
        "✗ gate: accuracy 0.8610 is not >= 0.99",
        "published as reviews@3, now reviews@prod",
        "slice amazon",
        "baseline 0.7750",
        "+8.5 points",
        "+18.9 points",
        "9,079 rows read",
        "dropped by exact dedup 77",
        "label '<b>' is unknown",
        "体育新闻",
        "torch 2.13.0",
        "1 min 23 s",
        "22.7M",
        "What a step takes",
        "90.9 MB",
        "31 % of its time",
        "12.5 %",
    ):
        assert said in page.text, said
    charts = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert [chart.partition(":")[0] for chart in charts if chart] == ["Loss", "Accuracy", "Learning rate", "Gradient norm", "Tokens/s"]


def test_the_page_asks_nobody_and_runs_no_script(tmp_path: Path) -> None:
    text = report.write(*finished(tmp_path)).read_text(encoding="utf-8")
    tags = Page(text).tags
    assert not {"script", "link", "img", "iframe", "b>"} & {tag for tag, _ in tags}
    assert not [attributes for _, attributes in tags if {"src", "href"} & attributes.keys()]
    assert not re.search(r"url\(|@import", text)
    assert "&lt;script&gt;alert(1)" in text, "labels are text, wherever they stand"


def test_a_resumed_run_shows_the_curve_from_its_beginning(tmp_path: Path) -> None:
    run_dir, spec, records = finished(tmp_path)
    root = open_storage(str(tmp_path))
    (run_dir / "metrics.jsonl").unlink()
    events = Events(run_dir)
    events.emit("resume", step=120)
    train_events(run_dir, range(130, 260, 10))
    others = {"reviews-1": {}, "other-seed": {"seed": 18}, "other-workers": {"resources": spec["resources"] | {"workers": 9}}}
    for place, (name, changed) in enumerate(others.items()):
        state(root, name, 1767321000.0 + place)
        train_events(tmp_path / "runs" / name, range(10 - 5 * bool(changed), 150, 10))
        root.write(f"runs/{name}/spec.json", json.dumps(spec | changed).encode())
    text = report.write(run_dir, spec, records).read_text(encoding="utf-8")
    steps = [int(step) for step in re.findall(r"training: [\d.]+ at (\d+)", text.partition("<b>Accuracy</b>")[0])]
    assert steps == list(range(10, 260, 10))


def test_the_records_of_a_run_that_failed_on_the_way(tmp_path: Path) -> None:
    root = open_storage(str(tmp_path))
    Artifact(root.at("artifacts/train/trainkey"), "train", "trainkey").commit(trained())
    assert report.finished(root, {"train": "trainkey", "evaluate": "cleaned-away"}) == {"train": trained()}


def test_a_run_without_evaluation_and_a_language_model(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "chat-1"
    run_dir.mkdir(parents=True)
    spec = job(tmp_path, task={"kind": "causal_lm"}, publish=None)
    page = Page(report.write(run_dir, spec, {"prepare": prepared()}).read_text(encoding="utf-8"))
    assert "not published" in page.text and "no gate" in page.text

    open_storage(str(tmp_path)).write(
        "artifacts/evaluate/evaluatekey/evaluation.json",
        json.dumps({"test": {"rows": 64, "loss": 2.5, "perplexity": 12.18, "token_accuracy": 0.51}}).encode(),
    )
    records = {"prepare": prepared(), "train": trained(), "evaluate": record("evaluate", {})}
    page = Page(report.write(run_dir, spec, records).read_text(encoding="utf-8"))
    assert "12.18 perplexity, test split" in page.text and "token accuracy" in page.text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 3, [3]), (10, 250, [0, 50, 100, 150, 200, 250]), (0, 4e-5, [0, 1e-5, 2e-5, 3e-5, 4e-5])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 5) == expected


def test_a_chart_leaves_out_what_is_not_finite_and_thins_what_is_long() -> None:
    assert line_chart("x", [Series("a", [(1, float("nan"))])], str) is None
    chart = line_chart("x", [Series("a", [(i, float(i)) for i in range(5000)])], str)
    assert chart is not None and chart.count("<title>") == 200 and "4,999" in chart


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("chromium") is None, reason="Debian's chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_draws_it(tmp_path: Path, width: int) -> None:
    """In a real browser, without network: the page is drawn, at the width of a desktop and of a phone."""
    page = report.write(*finished(tmp_path))
    picture, profile = tmp_path / "page.png", tmp_path / "profile"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    flags += ["--disable-component-update", f"--user-data-dir={profile}", f"--window-size={width},2400", f"--screenshot={picture}"]
    drawn = subprocess.run(["chromium", *flags, page.as_uri()], capture_output=True, timeout=120, check=False)
    assert drawn.returncode == 0, drawn.stderr.decode()[-2000:]
    header = picture.read_bytes()[:24]
    assert (header[:8], int.from_bytes(header[16:20])) == (b"\x89PNG\r\n\x1a\n", width)
    assert picture.stat().st_size > 30_000, "an empty page is a few kilobytes"

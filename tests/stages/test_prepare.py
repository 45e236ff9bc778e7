"""Prepare on a real Ray: what comes out is right, the same however Ray deals out the work, and what is wrong is said."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raybm.core.artifact import Artifact
from raybm.core.context import Context
from raybm.core.errors import DataError, DeadlineExceeded, NotFound
from raybm.core.events import Events
from raybm.core.storage import LocalStorage, open_storage
from raybm.data import execution
from raybm.stages import prepare

pytestmark = pytest.mark.integration

TINY = {"ref": "scratch:bert", "max_length": 16, "tokenizer": {"train": "wordpiece", "vocab_size": 200}}
LLAMA = {"ref": "scratch:llama", "max_length": 16, "tokenizer": {"train": "bpe", "vocab_size": 300}}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three files of reviews with duplicates over files, and a bad line in each."""
    folder = tmp_path_factory.mktemp("reviews")
    rng = random.Random(5)
    for name in ("a", "b", "c"):
        rows = [f"{rng.choice(['good', 'bad', 'odd'])}\tthe  film number {rng.randrange(500)}\n" for _ in range(300)]
        (folder / f"{name}.tsv").write_text("Sorte\tKritik\n" + "".join(rows) + "short\n")
    yield folder


def view(
    source: dict[str, Any] | list[dict[str, Any]], model: dict[str, Any] = TINY, task: str = "text_classification", **data: Any
) -> prepare.View:
    sources = source if isinstance(source, list) else [source]
    return prepare.View.parse({"seed": 3, "task": {"kind": task}, "model": model, "data": {"sources": sources, **data}})


def run(given: prepare.View, out: Path, uri: str = "") -> tuple[dict[str, Any], Artifact, list[str]]:
    told: list[str] = []
    storage = open_storage(uri or str(out))
    context = Context(
        job={}, job_name="test", storage=storage, resources=None, run_dir=out, events=Events(out / "run"), progress=told.append
    )
    made = Artifact(storage.at("artifact"), "prepare", "key")
    return prepare.run(given, {}, made, context), made, told


def table(made: Artifact, folder: str) -> list[dict[str, Any]]:
    filesystem, path = made.storage.arrow(folder)
    rows: list[dict[str, Any]] = pq.read_table(path, filesystem=filesystem).to_pylist()
    return rows


def digests(made: Artifact) -> dict[str, str]:
    keys = made.storage.keys()
    return {key: hashlib.sha256(made.storage.read(key)).hexdigest() for key in keys if not key.startswith("tokenizer/")}


TSV = {"kind": "tsv", "columns": {"text": "Kritik", "label": "Sorte"}}


def test_from_files_to_encoded_rows(ray_session: Any, reviews: Path, tmp_path: Path) -> None:
    given = view([TSV | {"path": f"{reviews}/[ab].tsv"}, TSV | {"path": f"{reviews}/c.tsv", "slice": "late"}])
    made, artifact, told = run(given, tmp_path)
    assert made == json.loads(artifact.storage.read("dataset.json"))
    assert (made["read"], made["bad"], made["labels"]) == (903, 3, ["bad", "good", "odd"])
    assert set(made["rows"]) == {"train", "validation", "test", "slice-late"}
    assert sum(made["rows"].values()) + made["dropped"]["exact_dedup"] + 3 == 903
    assert [Path(source["path"]).name for source in made["sources"]] == ["a.tsv", "b.tsv", "c.tsv"]
    texts = [row["text"] for split in made["rows"] for row in table(artifact, f"rows/{split}")]
    assert len(set(texts)) == len(texts) and not any("  " in text for text in texts)
    for split, count in made["rows"].items():
        rows, encoded = table(artifact, f"rows/{split}"), table(artifact, f"encoded/{split}")
        assert len(rows) == len(encoded) == count
        assert [made["labels"][row["labels"][0]] for row in encoded] == [row["label"] for row in rows]
        assert sum(len(row["input_ids"]) for row in encoded) == made["tokens"][split]
    bad = [json.loads(line) for line in artifact.storage.read("bad_rows.jsonl").splitlines()]
    assert [(Path(row["file"]).name, row["line"], row["reason"]) for row in bad] == [
        (f"{name}.tsv", 302, "1 fields instead of 2") for name in "abc"
    ]
    assert (artifact.folder("processor") / "tokenizer.json").exists() and not artifact.storage.keys("staged")
    assert any("903 rows read" in line for line in told)


def test_equal_bit_for_bit_on_few_and_many_cpus(ray_session: Any, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(prepare, "PART_BYTES", 8000)  # several tasks, and a shuffle
    given = view(TSV | {"path": f"{reviews}/*.tsv"}, split={"validation": 0.2, "test": 0.2})
    made, artifact, _ = run(given, tmp_path / "many")
    assert len([key for key in artifact.storage.keys("encoded/train") if key.endswith(".parquet")]) > 2

    @ray.remote(num_cpus=3)
    class Holder:
        def ready(self) -> None: ...

    holder = Holder.remote()
    ray.get(holder.ready.remote(), timeout=120)
    try:
        again, other, _ = run(given, tmp_path / "few")
    finally:
        ray.kill(holder)
    assert again == made and digests(other) == digests(artifact)
    monkeypatch.undo()
    whole, _, _ = run(given, tmp_path / "whole")
    assert whole["rows"] == made["rows"] and whole["dropped"] == made["dropped"]


def test_text_is_packed_in_the_order_of_the_file(ray_session: Any, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {i} of the book\n" for i in range(200)))
    source = {"kind": "text", "path": str(path), "unit": "line"}
    made, artifact, _ = run(view(source, LLAMA, "causal_lm"), tmp_path)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(artifact.folder("processor"))
    stream = [token for row in table(artifact, "encoded/train") for token in row["input_ids"]]
    lines = [row["text"] for row in table(artifact, "rows/train")]
    assert tokenizer.decode(stream).split(tokenizer.eos_token)[: len(lines)] == lines
    assert lines == sorted(lines, key=lambda line: int(line.split()[1])) and made["labels"] == []


def test_a_whole_job_on_s3(s3: str, ray_session: Any, tmp_path: Path) -> None:
    open_storage(f"{s3}/prepare").write(
        "in/talk.jsonl", b"".join(b'{"prompt": "say %d", "completion": "%d"}\n' % (i, i) for i in range(40))
    )
    source = {"kind": "jsonl", "path": f"{s3}/prepare/in/*.jsonl"}
    made, artifact, _ = run(
        view(source, LLAMA | {"max_length": 64}, "causal_lm", split={"validation": 0.2, "test": 0.2}), tmp_path, f"{s3}/prepare/out"
    )
    assert sum(made["rows"].values()) == 40 == sum(len(table(artifact, f"encoded/{split}")) for split in made["rows"])


def test_mistakes_are_said(ray_session: Any, reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="matches no file"):
        run(view(TSV | {"path": f"{reviews}/none*.tsv"}), tmp_path)
    with pytest.raises(DataError, match="Did you mean 'Kritik'"):
        run(view(TSV | {"path": f"{reviews}/a.tsv", "columns": {"text": "Kritic", "label": "Sorte"}}), tmp_path)
    with pytest.raises(DataError, match=r"1 of 301 rows \(0\.3%\).*a\.tsv:302: 1 fields"):
        run(view(TSV | {"path": f"{reviews}/a.tsv"}, max_bad_share=0.001), tmp_path)
    assert LocalStorage(tmp_path).at("artifact").read("bad_rows.jsonl").count(b"\n") == 1
    few = tmp_path / "few.tsv"
    few.write_text("Sorte\tKritik\nx\tone\ny\ttwo\n")
    with pytest.raises(DataError, match="no row came into the"):
        run(view(TSV | {"path": str(few)}, split={"validation": 0.01, "test": 0.01}), tmp_path)
    with pytest.raises(DataError, match="no row came into the train split"):
        run(view(TSV | {"path": str(few), "split": "test"}), tmp_path)


def test_rows_that_cannot_be_encoded_leave_both_folders(ray_session: Any, tmp_path: Path) -> None:
    for split, labels in (("train", "xyx"), ("test", "xz")):
        (tmp_path / f"{split}.tsv").write_text("Sorte\tKritik\n" + "".join(f"{label}\t{split} {i}\n" for i, label in enumerate(labels)))
    sources = [TSV | {"path": f"{tmp_path}/{split}.tsv", "split": split} for split in ("train", "test")]
    made, artifact, _ = run(view(sources, max_bad_share=0.5), tmp_path)
    assert made["rows"] == {"test": 1, "train": 3} and made["bad"] == 1
    assert [row["label"] for row in table(artifact, "rows/test")] == ["x"] and len(table(artifact, "encoded/test")) == 1
    assert b"'z' is none of x, y" in artifact.storage.read("bad_rows.jsonl")


def test_no_free_cpu_is_a_deadline_and_not_a_hang(ray_session: Any, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(execution, "STALL_TIMEOUT_S", 2.0)

    @ray.remote(num_cpus=ray.cluster_resources()["CPU"])
    class Holder:
        def ready(self) -> None: ...

    holder = Holder.remote()
    ray.get(holder.ready.remote(), timeout=120)
    try:
        with pytest.raises(DeadlineExceeded, match="0 of"):
            run(view(TSV | {"path": f"{reviews}/*.tsv"}), tmp_path)
    finally:
        ray.kill(holder)

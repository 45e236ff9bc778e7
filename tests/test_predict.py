from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybm.core.errors import DataError, NotFound, Unsupported, UserError
from raybm.core.signature import Signature
from raybm.core.storage import open_storage
from raybm.data.files import expand
from raybm.data.reading import Wanted
from raybm.predict import Predictor, _optional, _read, _source, _write, predict
from tests.engines import tiny
from tests.pictures import url


def rows_of(predictor: Predictor, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    table = pa.table({"rows": [json.dumps([{"_file": "f", "_line": i, "_bad": "", **row} for i, row in enumerate(rows, 1)])]})
    return [row for made in predictor(table) for part in made["rows"] for row in json.loads(part)]


@pytest.fixture
def at(tmp_path: Path) -> Any:
    return lambda name: Predictor(f"file:{tmp_path / name}", open_storage(str(tmp_path)), 2, 6)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    class Runtime:
        def get_assigned_resources(self) -> dict[str, float]:
            return {}

    monkeypatch.setattr("ray.get_runtime_context", Runtime)


def test_every_kind_of_model_predicts_in_order(tmp_path: Path, at: Any, no_ray: None) -> None:
    tiny.classifier(tmp_path / "c"), tiny.embedder(tmp_path / "e"), tiny.language_model(tmp_path / "g", context=48)
    texts = [{"text": "fox"}, {"label": "x"}, {"text": "the quick brown fox"}, {"text": "dog", "_bad": "odd"}, {"text": "over"}]
    labelled = rows_of(at("c"), *texts)
    assert [row.get("text") for row in labelled] == [row.get("text") for row in texts]
    assert [bool(row["_bad"]) for row in labelled] == [False, True, False, True, False]
    assert all((row.get("predicted_label") in ("bad", "good", "so-so")) != bool(row["_bad"]) for row in labelled)
    vectors = [row["predicted_embedding"] for row in rows_of(at("e"), *texts) if not row["_bad"]]
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    prompts = [{"prompt": "the dog"}, {"prompt": "the fox " * 40}, {"messages": [{"role": "user", "content": "她"}]}, {"prompt": "over"}]
    answers = rows_of(at("g"), *prompts)
    assert [("context" in row["_bad"], "predicted_text" in row) for row in answers] == [
        (False, True),
        (True, False),
        (False, True),
        (False, True),
    ]


@pytest.mark.parametrize("make", [tiny.classifier, tiny.regressor])
def test_pairs_of_texts_are_read_as_pairs(tmp_path: Path, at: Any, no_ray: None, make: Callable[[Path], Path]) -> None:
    make(tmp_path / "m")
    predictor = at("m")
    pairs = [("fox", "dog"), ("fox", ""), ("fox", "the lazy dog")]
    expected = predictor.engine.predict([{"text": text} | ({"text_pair": pair} if pair else {}) for text, pair in pairs])
    file = tmp_path / "pairs.csv"
    file.write_text("text,text_pair\n" + "".join(f"{text},{pair}\n" for text, pair in pairs))
    wanted = Wanted(predictor.engine.signature.groups(), _optional(predictor.engine.signature))
    [block] = _read(pa.table({"item": ["0"]}), _source(str(file), predictor.engine.signature, {}), wanted, expand(str(file)))
    rows = [row for made in predictor(pa.table(block)) for part in made["rows"] for row in json.loads(part)]
    name = next(name for name in ("score", "value") if name in expected[0])
    assert [row[f"predicted_{name}"] for row in rows] == pytest.approx([answer[name] for answer in expected], abs=1e-5)
    assert [row["text_pair"] for row in rows] == [pair for _, pair in pairs]


def test_the_output_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    signature = Signature(problem="causal_lm", protocols=("generates",), inputs=("prompt",), outputs=("text",))
    out = tmp_path / "deep" / "out.jsonl"

    def rows(broken: bool) -> Iterator[dict[str, Any]]:
        yield {"_file": "f", "_line": 1, "_bad": "", "prompt": "她", "predicted_text": "b"}
        if broken:
            raise DataError("in the middle")
        yield {"_file": "f", "_line": 2, "_bad": "odd"}

    with pytest.raises(DataError):
        _write(rows(True), out, signature, ())
    assert list(out.parent.iterdir()) == []
    assert _write(rows(False), out, signature, ()) == 1
    assert out.read_text() == '{"prompt": "她", "predicted_text": "b"}\n'
    assert json.loads((out.parent / "out.jsonl.bad.jsonl").read_text()) == {"file": "f", "line": 2, "reason": "odd"}


def test_what_cannot_be_read_is_refused_before_anything_starts(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    tiny.classifier(tmp_path / "c")
    with pytest.raises(NotFound):
        predict(f"file:{tmp_path / 'none'}", tmp_path / "x.jsonl", tmp_path / "out.jsonl", storage)
    with pytest.raises(Unsupported, match=r"\.xlsx"):
        predict(f"file:{tmp_path / 'c'}", tmp_path / "x.xlsx", tmp_path / "out.jsonl", storage)
    with pytest.raises(NotFound, match="no such file"):
        predict(f"file:{tmp_path / 'c'}", tmp_path / "x.jsonl", tmp_path / "out.jsonl", storage)
    (tmp_path / "x.csv").write_text("id,review\n1,fox\n")
    with pytest.raises(DataError, match="no column 'revew'"):
        predict(f"file:{tmp_path / 'c'}", tmp_path / "x.csv", tmp_path / "out.jsonl", storage, columns={"text": "revew"})
    with pytest.raises(Unsupported):
        predict("scratch:llama", tmp_path / "x.jsonl", tmp_path / "out.jsonl", storage)
    (tmp_path / "x.jsonl").write_text('{"text": "fox"}\n')
    for out, wrong in (
        (tmp_path, "is a folder"),
        (Path("s3://bucket/out.jsonl"), "written to files"),
        (tmp_path / "x.csv" / "out", "cannot"),
    ):
        with pytest.raises(UserError, match=wrong):
            predict(f"file:{tmp_path / 'c'}", tmp_path / "x.jsonl", out, storage)


@pytest.mark.integration
def test_a_file_through_ray(ray_session: Any, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    tiny.classifier(tmp_path / "c")
    file = tmp_path / "reviews.csv"
    file.write_text("id,review\n" + "".join(f"{i},the fox {i}\n" for i in range(300)) + "too,many,fields\n", encoding="utf-8")
    out = tmp_path / "out.parquet"
    assert predict(f"file:{tmp_path / 'c'}", file, out, storage, columns={"text": "review", "id": "id"}) == 300
    table = pq.read_table(out).to_pylist()
    assert [row["id"] for row in table] == [str(i) for i in range(300)]
    assert {row["predicted_label"] for row in table} <= {"bad", "good", "so-so"} and table[0]["text"] == "the fox 0"
    assert json.loads((tmp_path / "out.parquet.bad.jsonl").read_text())["line"] == 302
    file.write_text("id,text,text_pair\n1,the fox,dog\n2,the fox,\n", encoding="utf-8")
    predict(f"file:{tmp_path / 'c'}", file, tmp_path / "pairs.jsonl", storage)
    assert len({json.loads(line)["predicted_score"] for line in (tmp_path / "pairs.jsonl").read_text().splitlines()}) == 2


def test_a_language_model_goes_on_from_every_line(tmp_path: Path, at: Any, no_ray: None) -> None:
    tiny.language_model(tmp_path / "g")
    file = tmp_path / "prompts.txt"
    file.write_text("the dog\nfox\n\n她说\n", encoding="utf-8")
    predictor = at("g")
    source = _source(str(file), predictor.engine.signature, {})
    [block] = _read(pa.table({"item": ["0"]}), source, Wanted((("messages",), ("prompt",))), expand(str(file)))
    rows = [row for made in predictor(pa.table(block)) for part in made["rows"] for row in json.loads(part)]
    assert [row["prompt"] for row in rows] == ["the dog", "fox", "她说"] and all(row["predicted_text"] for row in rows)


def test_a_damaged_picture_is_set_aside_and_its_neighbours_are_not(tmp_path: Path, at: Any, no_ray: None) -> None:
    tiny.image_classifier(tmp_path / "i"), tiny.image_text(tmp_path / "t")
    damaged = {"image": "data:image/png;base64,AAAA"}
    rows = rows_of(at("i"), {"image": url(0)}, damaged, {"image": url(1)}, {"text": "fox"})
    assert [row.get("predicted_label") in ("cat", "dog") for row in rows] == [True, False, True, False]
    assert [bool(row["_bad"]) for row in rows] == [False, True, False, True]
    vectors = rows_of(at("t"), {"image": url(0)}, {"text": "fox"}, damaged)
    assert [len(row.get("predicted_embedding", [])) for row in vectors] == [16, 16, 0]
    assert type(_source("a/b.png", Signature.read(tmp_path / "i") or pytest.fail(), {})).__name__ == "Images"

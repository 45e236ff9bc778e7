"""The cleaning steps."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from raybm.core.errors import SpecError
from raybm.data import BinLabels, ExactDedup, Normalize, Sample


def frame(**columns: list[Any]) -> pd.DataFrame:
    rows = len(next(iter(columns.values())))
    places = {"_source": [0] * rows, "_index": [0] * rows, "_row": list(range(rows))}
    return pd.DataFrame(
        {name: pd.Series(values, dtype=object) for name, values in columns.items()} | places | {"_bad": [""] * rows, "_drop": [""] * rows}
    )


def test_normalize_composes_and_tidies_white_space() -> None:
    made = Normalize().apply(frame(text=["  e\u0301te\u0301 \t\u00a0x\u200b\r\n  y\x00z ", None], label=["a\n", "b"]))
    assert made["text"].tolist() == ["été x\u200b\nyz", None]
    assert made["label"].tolist() == ["a", "b"]
    assert Normalize(form="NFKC", lines="join").apply(frame(text=["ﬁ\n\n１ "]))["text"].tolist() == ["fi 1"]


def test_words_are_parted_by_any_line_end() -> None:
    assert Normalize().apply(frame(text=["one\x0btwo\x0cthree"]))["text"].tolist() == ["one\ntwo\nthree"]


def test_normalize_goes_into_messages() -> None:
    made = Normalize().apply(frame(messages=[[{"role": "user", "content": " a  b "}], None]))
    assert made["messages"].tolist() == [[{"role": "user", "content": "a b"}], None]


def test_exact_dedup_keeps_the_first_whatever_the_label() -> None:
    talk = [{"role": "user", "content": "hi"}]
    rows = frame(text=["a", "b", "a", None, None], messages=[None, None, None, talk, list(talk)], label=["x", "x", "y", None, None])
    assert ExactDedup().apply(rows)["_drop"].tolist() == ["", "", "exact_dedup", "", "exact_dedup"]
    assert ExactDedup(columns=("label",)).apply(rows)["_drop"].tolist() == ["", "exact_dedup", "", "", ""]


def test_rows_that_have_nothing_are_equal_to_none() -> None:
    """They are bad rows, and counted as such; of a column that no file has, all would be duplicates but one."""
    rows = frame(text=[None, None, "", "a"], url=[None] * 4)
    assert ExactDedup().apply(rows[["text", "_source", "_index", "_row", "_bad", "_drop"]])["_drop"].tolist() == [""] * 4
    assert ExactDedup(columns=("url",)).apply(rows)["_drop"].tolist() == [""] * 4


def test_values_of_several_columns_do_not_run_together() -> None:
    rows = frame(prompt=["a", "ab"], completion=["bc", "c"])
    assert ExactDedup().apply(rows)["_drop"].tolist() == ["", ""]


def test_bin_labels() -> None:
    step = BinLabels(column="rating", edges=(-0.5, 0.5), labels=("bad", None, "good"))
    made = step.apply(frame(rating=["-2", "-0.5", "0.5", "x", None, "inf"]))
    assert made["label"].tolist() == ["bad", None, "good", None, None, "good"]
    assert made["_drop"].tolist() == ["", "bin_labels", "", "", "", ""]
    assert [bool(bad) for bad in made["_bad"]] == [False, False, False, True, True, False]


@pytest.mark.parametrize("wrong", [{"edges": [1, 0], "labels": ["a", "b", "c"]}, {"edges": [0], "labels": ["a"]}])
def test_bin_labels_refuses_intervals_that_do_not_fit(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        BinLabels.parse({"column": "rating", **wrong})


def test_a_smaller_sample_is_part_of_a_larger_one() -> None:
    rows = frame(text=[f"row {i}" for i in range(2000)])
    half, tenth = (set(rows["text"][Sample(share=share).apply(rows)["_drop"] == ""]) for share in (0.5, 0.1))
    assert tenth < half and 900 < len(half) < 1100 and 150 < len(tenth) < 250

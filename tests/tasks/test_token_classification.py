from __future__ import annotations

import pytest

from raybm.core.errors import DataError
from raybm.tasks import TokenClassification
from raybm.tasks.batching import IGNORED
from tests.engines import tiny

TAGS = ("B-PER", "I-PER", "O")


def test_the_first_piece_of_a_token_has_its_tag() -> None:
    task, tokenizer = TokenClassification().build(), tiny.chat_tokenizer()
    rows = [
        {"tokens": ["the", "naïve", "dog"], "tags": ["O", "B-PER", "I-PER"]},
        {"tokens": ["the"], "tags": ["O", "O"]},
        {"tokens": [], "tags": []},
        {"tokens": ["fox"], "tags": ["B-LOC"]},
        {"tokens": ["fox"] * 40, "tags": ["B-PER"] * 40},
    ]
    first, *bad, long = task.encode(rows, tokenizer, TAGS, 16)
    assert [label for label in first["labels"] if label != IGNORED] == [2, 0, 1]
    at = [place for place, label in enumerate(first["labels"]) if label != IGNORED]
    assert tokenizer.decode(first["input_ids"][at[1] : at[2]]) == "naïve"
    assert [row["_bad"] for row in bad] == ["1 tokens and 2 tags", "no tokens", "tag 'B-LOC' is none of B-PER, I-PER, O"]
    assert len(long["input_ids"]) == len(long["labels"]) == 16
    with pytest.raises(DataError, match="'NOUN' is no tag"):
        task.labels(["NOUN", "O"])


def test_scores_are_of_whole_entities() -> None:
    task = TokenClassification().build()
    rows = [{"tokens": list("abcd"), "tags": ["B-PER", "I-PER", "O", "B-LOC"]}, {"tokens": list("ab"), "tags": ["O", "B-PER"]}]
    said = [{"tags": ["B-PER", "I-PER", "O", "O"]}, {"tags": ["B-PER", "I-PER"]}]
    scores = task.score(said, rows, TAGS)
    assert (scores["precision"], scores["recall"]) == (0.5, pytest.approx(1 / 3))
    assert scores["f1"] == pytest.approx(0.4) and scores["token_accuracy"] == pytest.approx(0.5)
    assert scores["per_class"]["LOC"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    nothing = task.score([{"tags": ["O"]}], [{"tokens": ["a"], "tags": ["O"]}], TAGS)
    assert (nothing["f1"], nothing["token_accuracy"], nothing["per_class"]) == (0.0, 1.0, {})
    guess = task.baseline(rows, TAGS, 0)
    assert guess is not None and guess([{"tokens": ["a", "d", "?"]}]) == [{"tags": ["B-PER", "B-LOC", "O"]}]

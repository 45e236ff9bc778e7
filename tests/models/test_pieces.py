"""From words, texts and cells to numbers, as tokenizers of different kinds do it."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raybm.core.errors import Unsupported
from raybm.models.sequences import targets
from raybm.models.tabular import Columns
from raybm.models.words import fast, pieces
from tests.engines import tiny


def test_a_word_has_the_pieces_that_it_has_in_a_text() -> None:
    words = {"<unk>": 0, "a": 1, "Ġa": 2, "b": 3, "Ġb": 4}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    assert pieces(tokenizer, [["a", "b"]], 8)[0].ids == [2, 4]
    assert pieces(tiny.text_tokenizer(), [["the", "fox"]], 8)[0].ids == tiny.text_tokenizer()("the fox")["input_ids"]


def test_a_piece_that_is_a_blank_stands_for_no_word() -> None:
    words = {"<unk>": 0, "Ġ": 1, "7": 2, "a": 3, "Ġa": 4}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    digits = pre_tokenizers.Digits(individual_digits=True)
    inner.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    (made,) = pieces(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>"), [["a", "77"]], 8)
    assert made.ids == [4, 1, 2, 2] and made.words == [0, None, 1, None]


def test_a_tokenizer_that_does_not_say_where_its_pieces_stand() -> None:
    class Slow:
        is_fast = False

    fast(tiny.text_tokenizer())
    with pytest.raises(Unsupported, match="Slow does not say where"):
        fast(Slow())


def test_a_language_behind_the_end_stays_there() -> None:
    class Written:
        eos_token_id = 2

        def __call__(self, text_target: Any, verbose: bool) -> dict[str, Any]:
            return {"input_ids": [[7, 8, 9, 2, 50], [7, 8, 9, 2], [7, 8, 9]]}

    assert targets(Written(), ["", "", ""], 4) == [[7, 8, 2, 50], [7, 8, 9, 2], [7, 8, 9, 2]]


def test_a_cell_means_the_same_in_training_and_in_a_request() -> None:
    columns = Columns({}, {"smoker": ["false", "true"]})
    assert columns.encode({"smoker": True}) == columns.encode({"smoker": "true"}) == {"categorical": [2]}

from __future__ import annotations

import numpy as np
import pytest
import torch

from raybm.core.errors import UserError
from raybm.engines.encoders.reading import _span
from raybm.models.windows import LONGEST_ANSWER
from raybm.tasks import QuestionAnswering
from raybm.tasks.question_answering.task import normalized, overlap
from tests.engines import tiny

CONTEXT = "the quick brown fox jumps over the lazy dog " * 5 + "naïve café 她说今天天气很好"


@pytest.mark.parametrize(("answer", "start"), [("她说今天", None), ("lazy dog", "80"), ("the quick brown fox jumps", None)])
def test_the_labels_are_the_answers_tokens(answer: str, start: str | None) -> None:
    task, tokenizer = QuestionAnswering().build(), tiny.chat_tokenizer()
    [row] = task.encode([{"question": "fox?", "context": CONTEXT, "answer": answer, "answer_start": start}], tokenizer, (), 64)
    assert len(row["input_ids"]) <= 64
    assert tokenizer.decode(row["input_ids"][row["starts"][0] : row["ends"][0] + 1]).strip() == answer
    if start:  # the second time it stands there
        before = tokenizer.decode(row["input_ids"][: row["starts"][0]])
        assert before.count("lazy dog") == 1


def test_what_cannot_be_learnt_is_told() -> None:
    task, tokenizer = QuestionAnswering().build(), tiny.chat_tokenizer()
    rows = [{"question": "?", "context": CONTEXT, "answer": "cat"}, {"question": "?" * 999, "context": CONTEXT, "answer": CONTEXT}]
    assert [row["_bad"] for row in task.encode(rows, tokenizer, (), 64)] == [
        "the answer is not in the context",
        "the answer does not fit into 64 tokens",
    ]
    with pytest.raises(UserError, match="too few"):
        task.encode(rows, tokenizer, (), 8)


def test_an_answer_that_is_never_given_is_not_learnt() -> None:
    task, tokenizer = QuestionAnswering().build(), tiny.text_tokenizer()
    rows = [{"question": "fox", "context": "dog " * 100, "answer": "dog " * words} for words in (LONGEST_ANSWER, LONGEST_ANSWER + 1)]
    learnt, bad = task.encode(rows, tokenizer, (), 128)
    assert learnt["ends"][0] - learnt["starts"][0] + 1 == LONGEST_ANSWER
    assert bad == {"_bad": f"the answer has more than {LONGEST_ANSWER} tokens"}
    spans = np.array([(-1, -1), *((place, place + 1) for place in range(100))])
    starts, ends = torch.zeros(101), torch.zeros(101)
    starts[learnt["starts"][0]], ends[learnt["ends"][0]] = 9.0, 9.0
    starts[0] = ends[0] = 9.0
    assert _span(starts, ends, spans)[2:] == (learnt["starts"][0], learnt["ends"][0])
    assert f"{LONGEST_ANSWER} tokens" in (QuestionAnswering.__doc__ or "")


def test_answers_are_compared_as_squad_does() -> None:
    assert normalized("The  Eiffel-Tower!") == normalized("eiffeltower") == "eiffeltower"
    assert normalized("１２ ％") == "12" and normalized("the") == "the" and normalized("«Été»") == "été"
    assert overlap(normalized("in the year 1889"), normalized("1889")) == pytest.approx(2 * 1 / 4)
    assert overlap("今天天气", "天气") == pytest.approx(2 * 2 / 6)
    scores = QuestionAnswering().build().score([{"answer": "Paris."}, {"answer": ""}], [{"answer": "paris"}, {"answer": "Rome"}], ())
    assert scores == {"rows": 2, "exact_match": 0.5, "f1": 0.5}


def test_the_baseline_knows_what_answers_look_like() -> None:
    task = QuestionAnswering().build()
    train = [{"question": f"When was {name} founded?", "answer": f"in {year}"} for name, year in (("Rome", 1753), ("Bern", 1191))]
    train += [{"question": f"Who rules {name}?", "answer": ruler} for name, ruler in (("Rome", "the consul"), ("Bern", "the mayor"))]
    guess = task.baseline(train, (), 0)
    context = "Oslo is old. It was founded in 1048, and the mayor rules there."
    assert guess is not None
    rows = [{"question": "When was Oslo founded?", "context": context}, {"question": "", "context": ""}]
    assert guess(rows) == [{"answer": "It was founded in 1048"}, {"answer": ""}]

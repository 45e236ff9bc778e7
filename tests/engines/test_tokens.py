"""Engines that answer for tokens: tags, spans, fills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raybm.core.errors import UserError
from raybm.engines.transformers.engine import build
from raybm.engines.transformers.spec import Transformers
from tests.engines import tiny

SPEC = Transformers(max_batch=3, precision="fp32")
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]


def test_every_token_of_a_row_has_a_tag_however_long_it_is(tmp_path: Path) -> None:
    engine: Any = build(SPEC, tiny.tagger(tmp_path))
    rows = [["fox"], WORDS, [], WORDS * 10, ["", "dog"]]
    answers = engine.predict([{"tokens": row} for row in rows])
    assert [len(answer["tags"]) for answer in answers] == [len(row) for row in rows]
    inputs = engine.tokenizer(WORDS, is_split_into_words=True, return_tensors="pt")
    with torch.inference_mode():
        best = engine.model(**inputs).logits[0, 1:-1].argmax(-1).tolist()
    assert answers[1]["tags"] == [engine.labels[i] for i in best]
    assert answers[4]["tags"][0] == "O"
    with pytest.raises(UserError, match="row 0"):
        engine.predict([{"tokens": "fox"}])


def test_an_answer_is_the_likeliest_span_of_the_context(tmp_path: Path) -> None:
    engine: Any = build(SPEC, tiny.reader(tmp_path))
    context = " ".join(WORDS)
    asked = {"fox dog": context, "over": "", "the " * 50: "fox " * 99}
    rows = [{"question": question, "context": text} for question, text in asked.items()]
    answers = engine.predict(rows)
    for row, answer in zip(rows, answers, strict=True):
        assert answer["answer"] == row["context"][answer["start"] : answer["end"]] and 0 <= answer["score"] <= 1
    assert answers[1]["answer"] == "" and answers[2]["answer"]
    inputs = engine.tokenizer("fox dog", context, return_tensors="pt")
    with torch.inference_mode():
        output = engine.model(**inputs)
    starts, ends = (torch.softmax(logits[0, 4:-1], -1).numpy() for logits in (output.start_logits, output.end_logits))
    expected = np.triu(np.outer(starts, ends))
    first, last = np.unravel_index(expected.argmax(), expected.shape)
    assert answers[0]["answer"] == " ".join(WORDS[first : last + 1])
    assert answers[0]["score"] == pytest.approx(expected.max(), rel=1e-4)
    with pytest.raises(UserError, match="no context"):
        engine.predict([{"question": "fox"}])


def test_each_mask_is_filled(tmp_path: Path) -> None:
    engine: Any = build(SPEC, tiny.filler(tmp_path))
    answers = engine.predict([{"text": "the [MASK] fox [MASK]"}, {"text": "no mask"}])
    assert [len(answer["fills"]) for answer in answers] == [2, 0] == [len(answer["scores"]) for answer in answers]
    inputs = engine.tokenizer("the [MASK] fox [MASK]", return_tensors="pt")
    with torch.inference_mode():
        shares = torch.softmax(engine.model(**inputs).logits[0, [2, 4]], -1)
    assert answers[0]["fills"] == engine.tokenizer.convert_ids_to_tokens(shares.argmax(-1).tolist())
    assert answers[0]["scores"] == pytest.approx(shares.max(-1).values.tolist(), rel=1e-4)

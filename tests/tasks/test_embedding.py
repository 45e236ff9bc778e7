from __future__ import annotations

import pytest
import torch

from raybm.tasks import Embedding
from tests.engines import tiny

CONFIG = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
PAIRS = [("the fox", "quick"), ("lazy dog", "over"), ("the dog", "quick"), ("jumps", "brown")]
ROWS = [{"anchor": anchor, "positive": positive} for anchor, positive in PAIRS]


def test_the_loss_is_that_of_the_definition_and_equal_texts_are_no_wrong_answers() -> None:
    task, tokenizer = Embedding(temperature=0.5).build(), tiny.text_tokenizer()
    torch.manual_seed(0)
    model = task.model(None, CONFIG, (), tokenizer).eval()
    encoded = task.encode(ROWS, tokenizer, (), 16)
    loss = task.loss(model, task.collate(encoded, tokenizer))

    def vector(ids: list[int]) -> torch.Tensor:
        return torch.nn.functional.normalize(model(input_ids=torch.tensor([ids])).last_hidden_state.mean(1), dim=-1)[0]

    expected = 0.0
    for mine, other in (("input_ids", "positive_ids"), ("positive_ids", "input_ids")):
        for i, row in enumerate(encoded):
            rivals = [j for j, (_, positive) in enumerate(PAIRS) if j == i or positive != PAIRS[i][1]]
            cosines = torch.stack([vector(row[mine]) @ vector(encoded[j][other]) / 0.5 for j in rivals])
            expected -= torch.log_softmax(cosines, 0)[rivals.index(i)].item() / 2
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)


def test_places_among_distinct_positives() -> None:
    task = Embedding().build()
    vectors = {"the fox": [1.0, 0.0], "lazy dog": [0.0, 1.0], "the dog": [0.6, 0.8], "jumps": [0.8, -0.6]}
    found = {"quick": [1.0, 0.0], "over": [0.6, 0.8], "brown": [0.0, -1.0]}
    scores = task.score([{"anchor": vectors[row["anchor"]], "positive": found[row["positive"]]} for row in ROWS], ROWS, ())
    # fox finds quick first, lazy dog over first; the dog finds over before quick; jumps finds quick before brown.
    assert scores == {"rows": 4, "recall_at_1": 0.5, "recall_at_10": 1.0, "mrr": pytest.approx((1 + 1 + 1 / 2 + 1 / 2) / 4)}


def test_any_of_an_anchors_positives_is_right() -> None:
    rows = [{"anchor": anchor, "positive": positive} for anchor, positive in (("q", "a"), ("q", "b"), ("r", "c"))]
    vectors = {"q": [1.0, 0.0], "r": [0.0, 1.0], "a": [1.0, 0.0], "b": [0.8, 0.6], "c": [0.0, 1.0]}
    made = [{side: vectors[row[side]] for side in ("anchor", "positive")} for row in rows]
    assert Embedding().build().score(made, rows, ())["mrr"] == 1.0


def test_the_baseline_finds_words_inside_of_names() -> None:
    task = Embedding().build()
    rows = [{"anchor": f"Return the {name} of a graph.", "positive": f"get_{name}(G)"} for name in ("density", "radius", "center")]
    baseline = task.baseline(rows, (), 0)
    assert baseline is not None
    assert task.score(baseline(rows), rows, ())["recall_at_1"] == 1.0

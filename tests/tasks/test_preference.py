from __future__ import annotations

import math

import pytest
import torch

from raybm.core.errors import SpecError
from raybm.spec import JobSpec
from raybm.tasks import Preference
from tests.engines import tiny

CONFIG = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
ROWS = [
    {"prompt": "the quick", "chosen": "fox", "rejected": "lazy dog"},
    {"prompt": "over the", "chosen": "brown fox jumps", "rejected": "dog"},
]


def answered(model: torch.nn.Module, ids: list[int], labels: list[int]) -> float:
    """log p of the labelled tokens, one by one."""
    with torch.no_grad():
        shares = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1)
    return sum(shares[place - 1, label].item() for place, label in enumerate(labels) if place and label >= 0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_the_paper(smoothing: float) -> None:
    task, tokenizer = Preference(beta=0.5, label_smoothing=smoothing).build(), tiny.chat_tokenizer()
    torch.manual_seed(0)
    model = task.model(None, CONFIG, (), tokenizer).eval()
    encoded = task.encode(ROWS, tokenizer, (), 64)
    batch = task.collate(encoded, tokenizer)
    assert task.loss(model, batch).total.item() == pytest.approx(2 * math.log(2))  # both answers are as likely as at the start
    with torch.no_grad():
        for weight in model.policy.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    expected, gained = 0.0, 0
    for row in encoded:
        sides = ((row["input_ids"], row["labels"]), (row["rejected_ids"], row["rejected_labels"]))
        chosen, rejected = (answered(model.policy, *side) - answered(model.reference, *side) for side in sides)
        margin, gained = 0.5 * (chosen - rejected), gained + (chosen > rejected)
        expected += (1 - smoothing) * math.log1p(math.exp(-margin)) + smoothing * math.log1p(math.exp(margin))
    loss = task.loss(model, batch)
    assert loss.total.item() == pytest.approx(expected, rel=1e-4) and int(loss.correct) == gained


def test_only_the_policy_learns_and_is_published() -> None:
    task, tokenizer = Preference().build(), tiny.chat_tokenizer()
    model = task.model(None, CONFIG, (), tokenizer).train()
    assert not model.reference.training and model.policy.training
    task.loss(model, task.collate(task.encode(ROWS, tokenizer, (), 64), tokenizer)).total.backward()
    assert all(weight.grad is None for weight in model.reference.parameters())
    assert all(weight.grad is not None for weight in task.published(model).parameters())
    assert {id(weight) for weight in task.published(model).parameters()}.isdisjoint(map(id, model.reference.parameters()))


def test_equal_answers_teach_nothing() -> None:
    task, tokenizer = Preference().build(), tiny.chat_tokenizer()
    [same] = task.encode([{"prompt": "the", "chosen": "fox", "rejected": "fox"}], tokenizer, (), 64)
    [blank] = task.encode([{"prompt": "the", "chosen": "fox", "rejected": " "}], tokenizer, (), 64)
    assert "same" in same["_bad"] and blank["_bad"].startswith("rejected: ")


def test_a_model_that_cannot_answer_yet_is_refused() -> None:
    job = {
        "name": "x",
        "task": {"kind": "preference"},
        "model": {"ref": "scratch:llama", "tokenizer": {"train": "bpe"}},
        "data": {"sources": [{"kind": "jsonl", "path": "x.jsonl"}]},
    }
    with pytest.raises(SpecError, match="answers already"):
        JobSpec.parse(job)

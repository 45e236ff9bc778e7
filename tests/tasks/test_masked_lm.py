from __future__ import annotations

import pytest
import torch

from raybm.core.errors import Unsupported
from raybm.tasks import MaskedLm
from raybm.tasks.batching import IGNORED
from tests.engines import tiny

TEXT = "the quick brown fox jumps over the lazy dog " * 40


def test_fifteen_in_a_hundred_are_hidden_and_specials_never() -> None:
    task, tokenizer = MaskedLm().build(), tiny.text_tokenizer()
    rows = task.pack(task.encode([{"text": TEXT}, {"text": "fox"}], tokenizer, (), 32), 32)
    assert len(rows) == 13 and max(len(row["input_ids"]) for row in rows) == 32
    batch = task.collate(rows, tokenizer, seed=1)
    chosen = batch["labels"] != IGNORED
    original = torch.cat([torch.tensor(row["input_ids"]) for row in rows])
    words = sum(len(row["input_ids"]) - 2 for row in rows)
    assert int(task.units(batch)) == int(chosen.sum()) == pytest.approx(0.15 * words, rel=0.1)
    assert not torch.isin(batch["labels"][chosen], torch.tensor(tokenizer.all_special_ids)).any()
    shown = batch["input_ids"][batch["attention_mask"].bool()]
    hidden = batch["labels"][batch["attention_mask"].bool()]
    assert torch.equal(torch.where(hidden == IGNORED, shown, hidden), original)
    assert 0.6 < float((batch["input_ids"][chosen] == tokenizer.mask_token_id).float().mean()) < 0.95


def test_masks_are_drawn_anew_in_training_and_stand_in_evaluations() -> None:
    task, tokenizer = MaskedLm().build(), tiny.text_tokenizer()
    rows = task.pack(task.encode([{"text": TEXT}], tokenizer, (), 32), 32)
    fixed = task.collate(rows, tokenizer)["labels"]
    assert torch.equal(fixed, task.collate(rows, tokenizer)["labels"])
    assert torch.equal(task.collate(rows[3:4], tokenizer)["labels"][0], fixed[3])  # whatever else is in the batch
    assert not torch.equal(task.collate(rows, tokenizer, seed=1)["labels"], task.collate(rows, tokenizer, seed=2)["labels"])


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    with pytest.raises(Unsupported, match="no mask token"):
        MaskedLm().build().encode([{"text": "fox"}], tiny.chat_tokenizer(), (), 32)
    assert MaskedLm().build().encode([{"text": "[SEP]"}], tiny.text_tokenizer(), (), 32) == [{"_bad": "nothing in it that could be masked"}]

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from raybm.core.errors import UserError
from raybm.tasks import CausalLm
from raybm.tasks.batching import IGNORED
from tests.engines import tiny

TEXTS = ["the quick brown fox", "over the lazy dog", "the dog", "fox fox fox dog over the", "quick"]
CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("kind", ["documents", "conversations"])
def test_the_loss_of_packed_rows_is_that_of_single_ones(kind: str) -> None:
    task, tokenizer = CausalLm(packing=True).build(), tiny.chat_tokenizer()
    rows = [{"text": text} for text in TEXTS]
    if kind == "conversations":
        rows = [{"prompt": text, "completion": text[::-1]} for text in TEXTS]
    encoded = task.encode(rows, tokenizer, (), 64)
    packed = task.pack(encoded, 64)
    alone = [row for one in encoded for row in task.pack([one], 64)]
    assert len(packed) < len(alone)
    assert sum(len(row["input_ids"]) for row in packed) == sum(len(row["input_ids"]) for row in alone)
    torch.manual_seed(0)
    model = task.model(None, CONFIG, (), tokenizer).eval()
    together, one_by_one = task.collate(packed, tokenizer), task.collate(alone, tokenizer)
    assert int(task.units(together)) == int(task.units(one_by_one))
    assert task.loss(model, together).total.item() == pytest.approx(task.loss(model, one_by_one).total.item(), rel=1e-5)


def test_a_document_begins_as_a_text_that_is_to_be_completed() -> None:
    plain = tiny.chat_tokenizer()
    copy = Tokenizer.from_str(plain.backend_tokenizer.to_str())
    begun = PreTrainedTokenizerFast(tokenizer_object=copy, eos_token="<end>", bos_token="<|user|>")
    begun.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<|user|> $A", special_tokens=[("<|user|>", 1)])
    task = CausalLm().build()
    (with_start,), (without,) = (task.encode([{"text": "the fox"}], tokenizer, (), 16) for tokenizer in (begun, plain))
    assert with_start["input_ids"] == [1, *without["input_ids"]] and with_start["input_ids"][:-1] == begun("the fox")["input_ids"]


def test_a_long_document_goes_on_in_the_next_block() -> None:
    task, tokenizer = CausalLm().build(), tiny.chat_tokenizer()
    rows = task.pack(task.encode([{"text": "the fox " * 20}, {"text": "dog"}], tokenizer, (), 16), 16)
    assert [len(row["input_ids"]) for row in rows[:-1]] == [16] * (len(rows) - 1)
    assert all(row["labels"][0] == IGNORED and row["position_ids"][0] == 0 for row in rows)
    assert rows[0]["position_ids"] == list(range(16))


FALCON = {"model_type": "falcon", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}


@pytest.mark.parametrize(("config", "apart"), [(CONFIG, True), ({"model_type": "raybm_rnn", "hidden_size": 16}, True), (FALCON, False)])
def test_a_model_that_does_not_heed_positions_takes_no_packed_rows(config: dict[str, Any], apart: bool) -> None:
    task, tokenizer = CausalLm().build(), tiny.chat_tokenizer()
    model, device = task.model(None, config, (), tokenizer), torch.device("cpu")

    def rows(*positions: list[int]) -> Any:
        return lambda name: iter([(np.array([0, 4, 8]), np.concatenate(positions))])

    task.check(model, rows([0, 1, 2, 3], [0, 1, 2, 3]), device)
    with nullcontext() if apart else pytest.raises(UserError, match="FalconForCausalLM lets packed documents see each other"):
        task.check(model, rows([0, 1, 2, 3], [0, 1, 0, 1]), device)

"""The modules of our own keep to transformers' interface, and to what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from raybm.core.errors import Unsupported
from raybm.engines.transformers.spec import Transformers
from raybm.models import own
from raybm.tasks import CausalLm
from tests.engines import tiny

own.register()


def classifier(**config: Any) -> Any:
    torch.manual_seed(0)
    made = AutoConfig.for_model(vocab_size=40, hidden_size=16, num_labels=3, **config)
    return AutoModelForSequenceClassification.from_config(made, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "raybm_rnn", "cell": "lstm", "num_hidden_layers": 2},
        {"model_type": "raybm_rnn", "cell": "gru"},
        {"model_type": "raybm_textcnn"},
    ],
)
def test_a_saved_classifier_says_the_same_and_padding_changes_nothing(config: dict[str, Any], tmp_path: Path) -> None:
    model = classifier(**config)
    ids, mask = torch.randint(0, 40, (2, 9)), torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    logits = model(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(logits[1], model(input_ids=ids[1:, :4]).logits[0], atol=1e-6)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, use_safetensors=True).eval()
    assert type(again) is type(model)
    assert torch.allclose(again(input_ids=ids, attention_mask=mask).logits, logits, atol=1e-6)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_recurrent_language_model_forgets_at_the_next_document(cell: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("raybm_rnn", vocab_size=len(tiny.chat_tokenizer()), hidden_size=16, cell=cell, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    ids = torch.randint(0, config.vocab_size, (2, 7))
    packed = model(input_ids=ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]])).logits
    assert torch.allclose(packed[0, 3:], model(input_ids=ids[:1, 3:]).logits[0], atol=1e-6)
    assert torch.allclose(packed[0, :3], model(input_ids=ids[:1, :3]).logits[0], atol=1e-6)
    assert torch.allclose(packed[1], model(input_ids=ids[1:]).logits[0], atol=1e-6)

    model.save_pretrained(tmp_path)
    tiny.chat_tokenizer().save_pretrained(tmp_path)
    CausalLm().build().signature((), 64).write(tmp_path)
    with pytest.raises(Unsupported, match="no key/value cache"):
        Transformers().build(tmp_path)

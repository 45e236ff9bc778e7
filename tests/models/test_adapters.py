"""What the spec changes about a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from raybm.core.errors import UserError
from raybm.models import own
from raybm.models.adapters import adapt
from raybm.models.spec import ModelSpec

BART = {
    "model_type": "bart",
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "vocab_size": 50,
    "encoder_layerdrop": 0.25,
}
RNN = {"model_type": "raybm_rnn", "vocab_size": 50, "num_hidden_layers": 2, "pad_token_id": 0}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50}


def built(kind: Any, config: dict[str, Any]) -> torch.nn.Module:
    own.register()
    model: torch.nn.Module = kind.from_config(AutoConfig.for_model(**config))
    return model


@pytest.mark.parametrize(("kind", "config"), [(AutoModelForSeq2SeqLM, BART), (AutoModelForSequenceClassification, RNN)])
def test_dropout_is_set_wherever_it_is_kept(kind: Any, config: dict[str, Any]) -> None:
    model = built(kind, config)
    adapt(model, ModelSpec(ref="file:m", dropout=0.375))
    shares = [
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and ("dropout" in name or (name == "p" and isinstance(module, torch.nn.Dropout)))
    ]
    assert len(shares) > 1 and set(shares) == {0.375}
    assert {module.layerdrop for module in model.modules() if hasattr(module, "layerdrop")} <= {0.25, 0.0}


def test_frozen_layers_stay_and_unknown_ones_are_told() -> None:
    model = built(AutoModelForCausalLM, GPT2)
    adapt(model, ModelSpec(ref="file:m", freeze=("transformer.h.0.*", "*.wte.*")))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert "transformer.wte.weight" in frozen and all(name.startswith(("transformer.h.0.", "transformer.wte")) for name in frozen)
    with pytest.raises(UserError, match="no parameter is called layers"):
        adapt(model, ModelSpec(ref="file:m", freeze=("layers.*",)))
    with pytest.raises(UserError, match="nothing is left to train"):
        adapt(model, ModelSpec(ref="file:m", freeze=("*",)))

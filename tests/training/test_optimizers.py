"""Which parameters learn how fast, and by which rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from raybm.core.errors import UserError
from raybm.models import own
from raybm.spec.train import TrainSpec
from raybm.training.optimizers import optimizer
from raybm.training.zero import check_device, deepspeed_config

GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "tie_word_embeddings": False}
T5 = {"model_type": "t5", "d_model": 16, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 16, "vocab_size": 50}
RNN = {"model_type": "raybm_rnn", "vocab_size": 50, "num_hidden_layers": 2, "pad_token_id": 0}


def groups(kind: Any, config: dict[str, Any], **train: Any) -> dict[str, dict[str, Any]]:
    """Of each parameter, by name."""
    own.register()
    model = kind.from_config(AutoConfig.for_model(**config))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    made = optimizer(model, TrainSpec.parse({"zero": {"stage": 0}, **train}))
    return {names[id(parameter)]: group for group in made.param_groups for parameter in group["params"]}


@pytest.mark.parametrize(
    ("kind", "config", "rates"),
    [
        (
            AutoModelForCausalLM,
            GPT2,
            {"transformer.wte.weight": 0.125, "transformer.wpe.weight": 0.125, "transformer.h.0.ln_1.weight": 0.25, "lm_head.weight": 1},
        ),
        (AutoModel, T5, {"shared.weight": 0.125, "encoder.block.1.layer.0.SelfAttention.q.weight": 0.5}),
        (AutoModelForSequenceClassification, RNN, {"classifier.weight": 1}),
    ],
)
def test_each_layer_learns_at_a_share_of_the_rate_above(kind: Any, config: dict[str, Any], rates: dict[str, float]) -> None:
    found = groups(kind, config, layer_lr_decay=0.5)
    assert {name: found[name]["rate"] for name in rates} == rates
    recurrent = [group["rate"] for name, group in found.items() if "_l0" in name]
    assert set(recurrent) <= {0.25}


def test_muon_takes_the_layers_matrices_and_adamw_the_rest() -> None:
    found = groups(AutoModelForCausalLM, GPT2, optimizer="muon", betas=[0.8, 0.9])
    assert found["transformer.h.1.attn.c_attn.weight"]["use_muon"]
    for name in ("transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight", "transformer.h.1.attn.c_attn.bias"):
        assert not found[name]["use_muon"] and found[name]["betas"] == (0.8, 0.9)


def test_decay_spares_what_has_one_dimension() -> None:
    found = groups(AutoModelForCausalLM, GPT2, weight_decay=0.1)
    assert found["lm_head.weight"]["weight_decay"] == 0.1 and found["transformer.h.0.ln_1.weight"]["weight_decay"] == 0.0
    assert all(isinstance(parameter, torch.nn.Parameter) for group in found.values() for parameter in group["params"])


def test_a_device_that_lacks_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="CPUs train in fp32 or bf16"):
        check_device(TrainSpec.parse({"precision": "fp16", "zero": {"stage": 1}}), "cpu")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla T4")
    with pytest.raises(UserError, match="Tesla T4 has no bf16"):
        check_device(TrainSpec.parse({"precision": "bf16", "zero": {"stage": 1}}), "cuda")
    check_device(TrainSpec.parse({"precision": "fp16", "zero": {"stage": 1}}), "cuda")


def test_buffers_are_no_larger_than_what_is_trained() -> None:
    def bucket(*given: Any) -> int:
        return int(deepspeed_config(TrainSpec(), 2, *given)["zero_optimization"]["reduce_bucket_size"])

    assert bucket("cuda", 1500) == 2048 and bucket("cuda", 10**10) == bucket("cuda") == 200_000_000 and bucket("cpu") == 5_000_000

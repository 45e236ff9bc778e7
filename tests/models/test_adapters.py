"""What the spec changes about a model."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from raybm.core.errors import UserError
from raybm.models import own
from raybm.models.adapters import adapt, in_few_bits, merged, quantization, tuner
from raybm.models.spec import LoraSpec, ModelSpec

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
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
}
SIDE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
CLIP = {"model_type": "clip", "text_config": SIDE | {"vocab_size": 50}, "vision_config": SIDE, "projection_dim": 8}
T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 50}
TEXTCNN = {"model_type": "raybm_textcnn", "vocab_size": 50, "pad_token_id": 0}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50}
CONVBERT = {**BERT, "model_type": "convbert", "num_attention_heads": 4, "embedding_size": 16}
MAMBA = {"model_type": "mamba", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}


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


@pytest.mark.parametrize(
    ("kind", "config", "head"),
    [
        (AutoModelForSequenceClassification, BERT, "classifier."),
        (AutoModelForMaskedLM, BERT, None),  # its head is pretrained, and its last layer the word embeddings
        (AutoModelForImageClassification, CLIP, "classifier."),  # from here on they are their own base, but the last
        (AutoModelForSequenceClassification, TEXTCNN, "classifier."),
        (AutoModel, BERT, None),
        (AutoModel, CLIP, None),
        (AutoModelForSeq2SeqLM, T5, None),
        (AutoModelForCausalLM, GPT2, None),
    ],
)
def test_adapters_and_a_new_head_are_trained_and_nothing_else(kind: Any, config: dict[str, Any], head: str | None) -> None:
    model = built(kind, config)
    adapt(model, ModelSpec.parse({"ref": "file:m", "lora": {"rank": 2}}))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    adapters = [name for name in trained if "lora_" in name]
    assert adapters and all(head is not None and name.startswith(head) for name in set(trained) - set(adapters))
    vocabulary = model.get_output_embeddings()  # type: ignore[operator]
    assert vocabulary is None or not any("lora_" in name for name, _ in vocabulary.named_parameters())


def test_adapters_for_layers_that_are_not_there() -> None:
    with pytest.raises(UserError, match=r"no layer is called q_proj, k_proj\.") as told:
        adapt(
            built(AutoModelForSequenceClassification, BERT), ModelSpec.parse({"ref": "file:m", "lora": {"targets": ["q_proj", "k_proj"]}})
        )
    assert told.value.remedy == "The linear layers are: dense, key, query, value."


def test_a_convolution_of_groups_gets_no_adapter_and_the_others_are_merged() -> None:
    spec = ModelSpec.parse({"ref": "file:m", "lora": {"rank": 4}})
    model = built(AutoModelForSequenceClassification, CONVBERT)
    adapt(model, spec)
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert any(name.endswith("key_conv_attn_layer.pointwise") for name in adapted)
    assert not any(name.endswith("depthwise") for name in adapted)
    assert spec.lora is not None
    plain, _ = merged(built(AutoModelForSequenceClassification, CONVBERT), model.state_dict(), spec.lora)
    assert not any("lora" in name for name, _ in plain.named_modules())
    with pytest.raises(UserError, match=r"no layer is called depthwise\."):
        tuner(built(AutoModelForSequenceClassification, CONVBERT), LoraSpec(targets=("depthwise",)))


def test_what_peft_refuses_is_told() -> None:
    with pytest.raises(UserError, match="'out_proj' is incompatible with Mamba") as told:
        tuner(built(AutoModelForCausalLM, MAMBA), LoraSpec())
    assert told.value.where == "model.lora.targets" and "in_proj" in told.value.remedy
    tuner(built(AutoModelForCausalLM, MAMBA), LoraSpec(targets=("in_proj",)))


@pytest.mark.parametrize(
    ("frozen", "still"),
    [
        (("resnet.*",), {"resnet.embedder", "resnet.encoder"}),
        (("resnet.embedder.*",), {"resnet.embedder"}),
        (("*.normalization.weight",), set()),  # a bias that is trained
    ],
)
def test_a_frozen_batch_norm_keeps_its_statistics(frozen: tuple[str, ...], still: set[str]) -> None:
    torch.manual_seed(0)
    model: Any = built(AutoModelForImageClassification, RESNET)
    adapt(model, ModelSpec(ref="file:m", freeze=frozen))
    model = deepcopy(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train().resnet.train()(torch.randn(2, 3, 32, 32))
    same = {".".join(name.split(".")[:2]) for name, buffer in model.named_buffers() if torch.equal(buffer, before[name])}
    assert same == still
    assert model.classifier.training
    model.eval()
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("kind", "config", "whole"),
    [
        (AutoModelForSequenceClassification, BERT, ["classifier"]),
        (AutoModel, BERT, []),
        (AutoModelForSeq2SeqLM, T5, ["lm_head"]),
        (AutoModelForImageClassification, CLIP, ["classifier"]),
    ],
)
def test_only_heads_stay_whole_where_weights_are_quantised(kind: Any, config: dict[str, Any], whole: list[str]) -> None:
    pytest.importorskip("bitsandbytes")
    spec = LoraSpec(quantize="nf4")
    assert quantization(spec, lambda: built(kind, config))["quantization_config"].llm_int8_skip_modules == whole
    model = built(kind, config)
    linear = sum(
        module.weight.numel() for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name not in whole
    )
    tuner(model, spec)
    assert in_few_bits(model) == linear

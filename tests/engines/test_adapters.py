"""Low-rank adapters in the transformers engine: each row of a batch goes through its own."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, OPTConfig, OPTForCausalLM

from raybm.core.errors import NotFound, Unsupported
from raybm.engines.protocol import Answer, GenerateRequest
from raybm.engines.transformers.spec import Transformers
from tests.engines import tiny

PROMPTS = ("fox", "the quick brown fox jumps over the lazy dog", "dog over")
KINDS: dict[str, tuple[Callable[[Path], Path], Any, list[str]]] = {
    "causal_lm": (tiny.language_model, AutoModelForCausalLM, ["q_proj", "down_proj"]),
    "seq2seq": (tiny.encoder_decoder, AutoModelForSeq2SeqLM, ["q", "wo"]),
}


def adapter(folder: Path, family: Any, config: Any, out: Path, seed: int = 0) -> Path:
    """A random adapter of the folder's model in `out`/adapter, and the model with it in its weights in `out`/merged."""
    torch.manual_seed(seed)
    adapted = get_peft_model(family.from_pretrained(folder), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(out / "adapter")
    if isinstance(config, LoraConfig) and not config.use_dora:
        shutil.copytree(folder, out / "merged")
        adapted.merge_and_unload().save_pretrained(out / "merged")
    return out


def answers(engine: Any, *requests: GenerateRequest) -> list[str]:
    async def one(request: GenerateRequest) -> str:
        return Answer.of([delta async for delta in engine.generate(request)]).text

    async def together() -> list[str]:
        return await asyncio.wait_for(asyncio.gather(*map(one, requests)), 60)

    return asyncio.run(together())


def asked(prompt: str, name: str | None = None) -> GenerateRequest:
    return GenerateRequest(prompt=prompt, max_tokens=12, temperature=0.0, adapter=name)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_batch_go_through_adapters_of_their_own(tmp_path: Path, kind: str) -> None:
    make, family, targets = KINDS[kind]
    folder = make(tmp_path / "base")
    one = adapter(folder, family, LoraConfig(r=4, target_modules=targets, lora_dropout=0.5), tmp_path / "one", 1)
    two = adapter(folder, family, LoraConfig(r=2, target_modules=targets[:1]), tmp_path / "two", 2)
    expected = {}
    for name, where in (("one.1", one / "merged"), ("two", two / "merged"), (None, folder)):
        with closing(Transformers(precision="fp32").build(where)) as plain:
            expected[name] = answers(plain, *map(asked, PROMPTS))
    assert len({*map(tuple, expected.values())}) == 3, "an adapter changes what is said"

    refs = {"one.1": f"file:{one}/adapter", "two": f"file:{two}/adapter"}
    with closing(Transformers(precision="fp32", adapters=refs).build(folder)) as engine:
        asked_for = [(prompt, name) for prompt in PROMPTS for name in ("one.1", None, "two")]
        said = answers(engine, *(asked(prompt, name) for prompt, name in asked_for))
        with pytest.raises(NotFound, match=r"There are: one\.1, two"):
            answers(engine, asked("fox", "three"))
        assert said == [expected[name][PROMPTS.index(prompt)] for prompt, name in asked_for]


def test_what_cannot_be_an_adapter_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = tiny.language_model(tmp_path / "base")
    lora = LoraConfig(r=2, target_modules=["q_proj"])

    def refused(kind: type[Exception], match: str, where: str, base: Path = folder) -> None:
        with pytest.raises(kind, match=match):
            Transformers(adapters={"x": f"file:{tmp_path}/{where}"}).build(base)

    refused(NotFound, r"adapter_config\.json", "nowhere")
    adapter(folder, AutoModelForCausalLM, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), tmp_path / "dora")
    refused(Unsupported, "use_dora", "dora/adapter")
    adapter(folder, AutoModelForCausalLM, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"), tmp_path / "pissa")
    refused(Unsupported, "init_lora_weights", "pissa/adapter")
    adapter(folder, AutoModelForCausalLM, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]), tmp_path / "head")
    weights = load_file(tmp_path / "head/adapter/adapter_model.safetensors")
    assert [key for key in weights if ".lora_" not in key] == ["base_model.model.lm_head.base_layer.weight"], "peft keeps it beside"
    Transformers(adapters={"x": f"file:{tmp_path}/head/adapter"}).build(folder).close()
    weights["base_model.model.lm_head.base_layer.weight"] += 1
    save_file(weights, tmp_path / "head/adapter/adapter_model.safetensors")
    refused(Unsupported, "lm_head", "head/adapter")
    (tmp_path / "head/adapter/adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    refused(Unsupported, "cannot be read", "head/adapter")
    ia3 = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    adapter(folder, AutoModelForCausalLM, ia3, tmp_path / "ia3")
    refused(Unsupported, "IA3, no low-rank adapter", "ia3/adapter")
    fits = adapter(folder, AutoModelForCausalLM, lora, tmp_path / "fits")
    refused(Unsupported, "does not fit", "fits/adapter", tiny.encoder_decoder(tmp_path / "other"))
    refused(Unsupported, "text_classification has none", "fits/adapter", tiny.classifier(tmp_path / "classes"))
    config = json.loads((fits / "adapter/adapter_config.json").read_text())
    (fits / "adapter/adapter_config.json").write_text(json.dumps(config | {"r": 3}))
    refused(Unsupported, "does not fit", "fits/adapter")


def test_layers_that_have_lost_whose_tokens_they_see(tmp_path: Path) -> None:
    """OPT's see all rows' tokens as one list: peft cannot tell which adapter a token is for."""
    config = OPTConfig(vocab_size=300, hidden_size=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=32)
    tiny.chat_tokenizer().save_pretrained(tmp_path / "base")
    OPTForCausalLM(config).save_pretrained(tmp_path / "base")
    adapter(tmp_path / "base", AutoModelForCausalLM, LoraConfig(r=2, target_modules=["fc1"]), tmp_path)
    with pytest.raises(Unsupported, match="cannot be one of several in a OPTForCausalLM"):
        Transformers(adapters={"x": f"file:{tmp_path}/adapter"}).build(tmp_path / "base")

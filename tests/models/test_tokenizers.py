"""Tokenizers trained on the job's text: English and Chinese, every scheme."""

import hashlib
import json
import subprocess
import sys
import unicodedata

import pytest
from tokenizers.decoders import DecodeStream

from raybm.core.errors import DataError, Unsupported, UserError
from raybm.models.spec import ModelSpec, TokenizerSpec
from raybm.models.tokenizers import config_fields, tokenizer, train

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "A model learns what the text says: numbers such as 3.14, names, and naïve café words.",
    "今天天气很好，我们去公园散步吧。模型从文本中学习。",
    "深度学习模型需要大量的文本数据，今天我们来训练一个分词器。",
    "Mixed text 中英文混合 works too.\nA second line follows.",
] * 4
SCHEMES = ("wordpiece", "bpe", "unigram", "char")


def trained(scheme, vocab_size=400, lowercase=False):
    return train(TokenizerSpec(train=scheme, vocab_size=vocab_size, lowercase=lowercase), lambda: iter(TEXTS), 64)


def digest(scheme):
    return hashlib.sha256(trained(scheme).backend_tokenizer.to_str().encode()).hexdigest()


@pytest.mark.parametrize("scheme", ("bpe", "unigram", "char"))
@pytest.mark.parametrize("text", [*TEXTS[:5], " two  spaces ", "nai\u0308ve"])
def test_round_trip_gives_the_nfc_text(scheme, text):
    made = trained(scheme)
    ids = made(text)["input_ids"]
    assert made.decode(ids, skip_special_tokens=True) == unicodedata.normalize("NFC", text)


def test_wordpiece_frames_words_and_takes_each_chinese_character_as_a_word():
    made = trained("wordpiece", vocab_size=600, lowercase=True)
    ids = made("The DOG 今天天气")["input_ids"]
    assert made.convert_ids_to_tokens(ids)[:1] + made.convert_ids_to_tokens(ids)[-1:] == ["[CLS]", "[SEP]"]
    assert made.convert_ids_to_tokens(ids)[-5:-1] == ["今", "天", "天", "气"]
    assert made.decode(ids, skip_special_tokens=True) == "the dog 今 天 天 气"
    assert made.mask_token_id is not None


@pytest.mark.parametrize("scheme", SCHEMES)
def test_decoding_token_by_token_gives_the_same_text(scheme):
    made = trained(scheme)
    for text in TEXTS[:5]:
        ids = made(text)["input_ids"]
        stream = DecodeStream(skip_special_tokens=True)
        pieces = [stream.step(made.backend_tokenizer, token) or "" for token in ids]
        assert "".join(pieces) == made.decode(ids, skip_special_tokens=True)
        assert "�" not in "".join(pieces)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_never_seen_do_not_fail_and_bpe_keeps_them(scheme):
    made = trained(scheme)
    ids = made("🦊 ж", add_special_tokens=False)["input_ids"]
    assert ids
    if scheme == "bpe":
        assert made.decode(ids) == "🦊 ж"
    else:
        assert made.unk_token_id in ids


@pytest.mark.parametrize("scheme", SCHEMES)
def test_special_tokens_come_first_and_the_config_learns_their_ids(scheme, tmp_path):
    from transformers import PreTrainedTokenizerFast

    made = trained(scheme)
    fields = config_fields(made)
    assert fields["pad_token_id"] == 0 and made.unk_token_id == 1
    assert fields["vocab_size"] == len(made) <= 400
    assert {fields["bos_token_id"], fields["eos_token_id"]} == {2, 3}
    made.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again(TEXTS[2])["input_ids"] == made(TEXTS[2])["input_ids"]
    assert (config_fields(again), again.model_max_length, again.chat_template) == (fields, 64, made.chat_template)


def test_training_is_the_same_in_every_process():
    """Hash seeds and thread timing differ between processes."""
    code = "from tests.models import test_tokenizers as t\nfor scheme in t.SCHEMES: print(t.digest(scheme))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    assert there.split() == [digest(scheme) for scheme in SCHEMES]


def test_a_large_alphabet_keeps_the_vocabulary_size():
    texts = ["".join(chr(0x4E00 + (i * 7 + j) % 3000) for j in range(40)) for i in range(400)]
    for scheme in ("wordpiece", "char"):
        made = train(TokenizerSpec(train=scheme, vocab_size=500), lambda: iter(texts), 64)
        assert len(made) <= 500


def test_no_text_and_too_small_a_vocabulary_are_refused():
    with pytest.raises(DataError, match="no text"):
        train(TokenizerSpec(train="char"), lambda: iter(["  "]), 64)
    with pytest.raises(UserError, match="260") as caught:
        train(TokenizerSpec(train="bpe", vocab_size=100), lambda: iter(TEXTS), 64)
    assert caught.value.where == "model.tokenizer.vocab_size"


def saved_model(folder, architecture, **config):
    """A folder with a tokenizer of its own and a config; nobody looks into the weights."""
    made = trained("bpe")
    made.chat_template = None
    made.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], "model_type": "llama", **config}))
    (folder / "model.safetensors").write_bytes(b"x")
    return ModelSpec(ref=f"file:{folder}", max_length=32)


def never():
    raise AssertionError("a model with a tokenizer needs no text")


def test_a_model_brings_its_own_tokenizer(tmp_path):
    own = tokenizer(saved_model(tmp_path, "LlamaForCausalLM", max_position_embeddings=32), None, never)
    assert own("今天")["input_ids"] == trained("bpe")("今天")["input_ids"]
    assert own.model_max_length == 32 and own.chat_template is not None  # serving and training render alike


def test_an_encoder_gets_no_chat_template(tmp_path):
    assert tokenizer(saved_model(tmp_path, "BertModel"), None, never).chat_template is None


def test_a_model_that_says_nothing_of_its_use_is_taken(tmp_path):
    """BART's own files name a bare encoder-decoder, DeBERTa's nothing."""
    assert tokenizer(saved_model(tmp_path, "BartModel", is_encoder_decoder=True), None, never).chat_template is None


def test_longer_than_the_model_can_read_is_refused(tmp_path):
    with pytest.raises(UserError, match="16") as caught:
        tokenizer(saved_model(tmp_path, "LlamaForCausalLM", max_position_embeddings=16), None, never)
    assert caught.value.where == "model.max_length"


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    spec = saved_model(tmp_path, "LlamaForCausalLM")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(Unsupported, match="tokenizer"):
        tokenizer(spec, None, never)


def test_a_tokenizer_that_is_not_the_models_is_refused(tmp_path):
    with pytest.raises(UserError, match="knows 100") as caught:
        tokenizer(saved_model(tmp_path, "LlamaForCausalLM", vocab_size=100), None, never)
    assert caught.value.where == "model.ref"

"""Tokenizers trained on the job's text: English and Chinese, every scheme."""

import hashlib
import subprocess
import sys
import unicodedata

import pytest
from tokenizers.decoders import DecodeStream

from raybm.core.errors import DataError, UserError
from raybm.models.spec import TokenizerSpec
from raybm.models.tokenizers import config_fields, train

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
    tokenizer = trained(scheme)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == unicodedata.normalize("NFC", text)


def test_wordpiece_frames_words_and_takes_each_chinese_character_as_a_word():
    tokenizer = trained("wordpiece", vocab_size=600, lowercase=True)
    ids = tokenizer("The DOG 今天天气")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[:1] + tokenizer.convert_ids_to_tokens(ids)[-1:] == ["[CLS]", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(ids)[-5:-1] == ["今", "天", "天", "气"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the dog 今 天 天 气"
    assert tokenizer.mask_token_id is not None


@pytest.mark.parametrize("scheme", SCHEMES)
def test_decoding_token_by_token_gives_the_same_text(scheme):
    tokenizer = trained(scheme)
    for text in TEXTS[:5]:
        ids = tokenizer(text)["input_ids"]
        stream = DecodeStream(skip_special_tokens=True)
        pieces = [stream.step(tokenizer.backend_tokenizer, token) or "" for token in ids]
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
        assert "�" not in "".join(pieces)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_never_seen_do_not_fail_and_bpe_keeps_them(scheme):
    tokenizer = trained(scheme)
    ids = tokenizer("🦊 ж", add_special_tokens=False)["input_ids"]
    assert ids
    if scheme == "bpe":
        assert tokenizer.decode(ids) == "🦊 ж"
    else:
        assert tokenizer.unk_token_id in ids


@pytest.mark.parametrize("scheme", SCHEMES)
def test_special_tokens_come_first_and_the_config_learns_their_ids(scheme, tmp_path):
    from transformers import PreTrainedTokenizerFast

    tokenizer = trained(scheme)
    fields = config_fields(tokenizer)
    assert fields["pad_token_id"] == 0 and tokenizer.unk_token_id == 1
    assert fields["vocab_size"] == len(tokenizer) <= 400
    assert {fields["bos_token_id"], fields["eos_token_id"]} == {2, 3}
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again(TEXTS[2])["input_ids"] == tokenizer(TEXTS[2])["input_ids"]
    assert (config_fields(again), again.model_max_length, again.chat_template) == (fields, 64, tokenizer.chat_template)


def test_training_is_the_same_in_every_process():
    """Hash seeds and thread timing differ between processes."""
    code = "from tests.models import test_tokenizers as t\nfor scheme in t.SCHEMES: print(t.digest(scheme))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    assert there.split() == [digest(scheme) for scheme in SCHEMES]


def test_a_large_alphabet_keeps_the_vocabulary_size():
    texts = ["".join(chr(0x4E00 + (i * 7 + j) % 3000) for j in range(40)) for i in range(400)]
    for scheme in ("wordpiece", "char"):
        tokenizer = train(TokenizerSpec(train=scheme, vocab_size=500), lambda: iter(texts), 64)
        assert len(tokenizer) <= 500


def test_no_text_and_too_small_a_vocabulary_are_refused():
    with pytest.raises(DataError, match="no text"):
        train(TokenizerSpec(train="char"), lambda: iter(["  "]), 64)
    with pytest.raises(UserError, match="260") as caught:
        train(TokenizerSpec(train="bpe", vocab_size=100), lambda: iter(TEXTS), 64)
    assert caught.value.where == "model.tokenizer.vocab_size"

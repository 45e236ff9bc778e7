from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from raybm.engines.transformers.textstream import TextStream
from tests.engines.tiny import TEXTS, chat_tokenizer


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Marks a word's start with ▁; its decoder drops the space before the first token it sees. Bytes stand in for unknown characters."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.train_from_iterator(TEXTS[:1], trainers.BpeTrainer(vocab_size=60, special_tokens=["<s>"], initial_alphabet=["▁"]))
    written = json.loads(tokenizer.to_str())
    vocabulary = written["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(written)), bos_token="<s>")


def stream(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    before = tokenizer(prompt).input_ids
    out = TextStream(tokenizer, before, stop)
    pieces = []
    for token in tokenizer(prompt + text).input_ids[len(before) :]:
        pieces.append(out.push(token))
        if out.stopped:
            break
    return [*pieces, out.flush()], out


@pytest.mark.parametrize("text", [*TEXTS, " leading space and  two", "한국어 ไทย 👩‍👩‍👧‍👦", "line\n\n  indented\ttab"])
def test_pieces_are_whole_characters_and_join_to_the_text(text: str) -> None:
    pieces, _ = stream(chat_tokenizer(), "they say:", text)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_space_before_the_first_word_is_kept() -> None:
    pieces, _ = stream(sentencepiece_like(), "the quick", " brown fox jumps")
    assert "".join(pieces) == " brown fox jumps"


@pytest.mark.parametrize("prompt", ["the quick", "🦊" * 5])
@pytest.mark.parametrize("count", range(1, 9))
def test_characters_that_are_bytes_one_after_another(prompt: str, count: int) -> None:
    """A decoder gives up all bytes of a run that begins within a character."""
    pieces, _ = stream(sentencepiece_like(), prompt, "🦙" * count + " é한 fox")
    assert "".join(pieces) == "🦙" * count + " é한 fox"


def test_a_character_cut_by_the_end_is_left_out() -> None:
    tokenizer = chat_tokenizer()
    ids = tokenizer("ab😀").input_ids
    out = TextStream(tokenizer, [], ())
    assert "".join([out.push(token) for token in ids[:-1]]) + out.flush() == "ab"


def test_bytes_that_make_no_character_do_not_hold_the_text_back() -> None:
    tokenizer = chat_tokenizer()
    half = tokenizer("😀").input_ids[0]
    out = TextStream(tokenizer, [], ())
    assert "".join(out.push(half) for _ in range(20))


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        (("fox",), "the quick brown "),
        (("k bro",), "the quic"),
        (("zzz", "own", "brown"), "the quick "),
        (("foxy",), "the quick brown fox jumps"),
        (("jumps!",), "the quick brown fox jumps"),
        (("",), "the quick brown fox jumps"),
    ],
)
def test_nothing_of_a_stop_string_is_shown(stop: tuple[str, ...], shown: str) -> None:
    pieces, _ = stream(chat_tokenizer(), "", "the quick brown fox jumps", stop)
    assert "".join(pieces) == shown

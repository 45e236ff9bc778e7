from __future__ import annotations

import pytest
import torch

from raybm.tasks import Seq2Seq
from raybm.tasks.seq2seq.task import _parted
from tests.engines import tiny

CONFIG = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}


def test_what_is_too_long_is_cut_and_still_ends_and_what_is_blank_is_bad() -> None:
    task, tokenizer = Seq2Seq().build(), tiny.chat_tokenizer()
    long, blank = task.encode(
        [{"prompt": "the fox " * 20, "completion": "dog " * 20}, {"prompt": "fox", "completion": " "}], tokenizer, (), 16
    )
    assert all(len(long[name]) == 16 and long[name][-1] == tokenizer.eos_token_id for name in ("input_ids", "labels"))
    assert "blank" in blank["_bad"]


@pytest.mark.parametrize(
    ("texts", "tokenizer"),
    [(["good day"] * 3 + ["你好"], "13a"), (["你好", "天气"], "zh"), (["こんにちは", "天気"], "zh"), (["こんにちは", "またね"], "char")],
)
def test_bleu_parts_words_as_the_language_does(texts: list[str], tokenizer: str) -> None:
    assert _parted(texts) == tokenizer


def test_the_loss_is_that_of_the_model_itself() -> None:
    task, tokenizer = Seq2Seq().build(), tiny.chat_tokenizer()
    rows = task.encode([{"prompt": "the fox", "completion": "dog"}, {"prompt": "dog", "completion": "over the fox"}], tokenizer, (), 32)
    torch.manual_seed(0)
    model = task.model(None, CONFIG, (), tokenizer).eval()
    batch = task.collate(rows, tokenizer)
    mean = model(**batch).loss  # transformers' own mean over target tokens
    assert task.loss(model, batch).total.item() == pytest.approx(mean.item() * int(task.units(batch)), rel=1e-5)
    assert int(task.units(batch)) == sum(len(row["labels"]) for row in rows)


def test_scores_of_what_is_right_half_right_and_of_another_script() -> None:
    task = Seq2Seq().build()
    rows = [{"completion": "Netzwerk wurde gelöscht"}, {"completion": "сеть была удалена"}]
    right = task.score([{"text": row["completion"]} for row in rows], rows, ())
    assert right["chrf"] == pytest.approx(100) and right["rouge_l"] == pytest.approx(1)
    half = task.score([{"text": "Netzwerk"}, {"text": "сеть была"}], rows, ())
    assert 0 < half["chrf"] < 100 and half["rouge_l"] == pytest.approx((0.5 + 0.8) / 2)
    chinese = task.score([{"text": "无法删除这个网络"}], [{"completion": "无法删除网络"}], ())  # each character is a word
    assert half["rouge_1"] == half["rouge_l"] and half["rouge_2"] == pytest.approx((0 + 2 / 3) / 2)
    assert 30 < chinese["bleu"] < 100 and chinese["rouge_l"] == pytest.approx(2 * 6 / (6 + 8))


def test_the_baseline_gives_the_translation_of_the_most_similar_source() -> None:
    train = [{"prompt": "Delete the network", "completion": "Netzwerk löschen"}, {"prompt": "Name", "completion": "Name"}]
    recall = Seq2Seq().build().baseline(train, (), 0)
    assert recall is not None
    assert recall([{"prompt": "Delete networks"}, {"prompt": "Names"}]) == [{"text": "Netzwerk löschen"}, {"text": "Name"}]

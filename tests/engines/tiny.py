"""Folders of random models of a few thousand parameters, with tokenizers trained on three sentences."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from raybm.core.signature import Signature
from raybm.models import own
from raybm.models.image_text import ImageTextProcessor
from raybm.models.images import ImageProcessor

TEXTS = ("the quick brown fox jumps over the lazy dog", "她说今天天气很好，我们去公园吧", "naïve café — 😀 👩‍👩‍👧 done")
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<end>{% endfor %}<|assistant|>"


@cache
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges only of frequent pairs: an emoji takes several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>", "<|user|>", "<|assistant|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", chat_template=TEMPLATE)


@cache
def text_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def language_model(folder: Path, context: int = 128) -> Path:
    torch.manual_seed(0)
    tokenizer = chat_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Signature(problem="causal_lm", protocols=("generates",), inputs=("messages", "prompt"), outputs=("text",), max_length=context).write(
        folder
    )
    return folder


def encoder_decoder(folder: Path, config: PreTrainedConfig | None = None) -> Path:
    """A T5, or what `config` says."""
    torch.manual_seed(0)
    tokenizer = chat_tokenizer()
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "initializer_factor": 5.0}
    special = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}
    AutoModelForSeq2SeqLM.from_config(config or T5Config(**shape, **special)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Signature(problem="seq2seq", protocols=("generates",), inputs=("prompt",), outputs=("text",), max_length=48).write(folder)
    return folder


def _bert(**more: object) -> BertConfig:
    torch.manual_seed(0)
    return BertConfig(
        vocab_size=len(text_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        initializer_range=0.5,
        pad_token_id=0,
        **more,
    )


def classifier(folder: Path, labels: tuple[str, ...] = ("bad", "good", "so-so")) -> Path:
    BertForSequenceClassification(_bert(id2label=dict(enumerate(labels)))).save_pretrained(folder)
    text_tokenizer().save_pretrained(folder)
    Signature(
        problem="text_classification",
        protocols=("predicts",),
        inputs=("text",),
        outputs=("label", "score", "scores"),
        labels=labels,
        max_length=32,
    ).write(folder)
    return folder


def regressor(folder: Path) -> Path:
    BertForSequenceClassification(_bert(num_labels=1, problem_type="regression")).save_pretrained(folder)
    text_tokenizer().save_pretrained(folder)
    Signature(problem="regression", protocols=("predicts",), inputs=("text",), outputs=("value",), max_length=32).write(folder)
    return folder


def cross_encoder(folder: Path) -> Path:
    """As it comes from the hub, without a signature."""
    (regressor(folder) / "signature.json").unlink()
    return folder


def embedder(folder: Path) -> Path:
    BertModel(_bert()).save_pretrained(folder)
    text_tokenizer().save_pretrained(folder)
    Signature(problem="embedding", protocols=("embeds",), inputs=("text",), outputs=("embedding",), max_length=32).write(folder)
    return folder


def tagger(folder: Path, labels: tuple[str, ...] = ("B-X", "I-X", "O")) -> Path:
    BertForTokenClassification(_bert(id2label=dict(enumerate(labels)))).save_pretrained(folder)
    text_tokenizer().save_pretrained(folder)
    return folder


def reader(folder: Path) -> Path:
    BertForQuestionAnswering(_bert()).save_pretrained(folder)
    text_tokenizer().save_pretrained(folder)
    return folder


def filler(folder: Path) -> Path:
    BertForMaskedLM(_bert()).save_pretrained(folder)
    text_tokenizer().save_pretrained(folder)
    Signature(problem="masked_lm", protocols=("predicts",), inputs=("text",), outputs=("fills", "scores"), max_length=32).write(folder)
    return folder


TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "patch_size": 8,
}
CLIP: dict[str, Any] = {"model_type": "clip", "projection_dim": 16, "text_config": TOWER, "vision_config": TOWER}


def image_classifier(folder: Path, labels: tuple[str, ...] = ("cat", "dog")) -> Path:
    own.register()
    torch.manual_seed(0)
    config = AutoConfig.for_model("raybm_cnn", widths=[8, 16], id2label=dict(enumerate(labels)))
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    ImageProcessor(16, 16, (0.5,) * 3, (0.5,) * 3).save_pretrained(folder)
    Signature(
        problem="image_classification", protocols=("predicts",), inputs=("image",), outputs=("label", "score", "scores"), labels=labels
    ).write(folder)
    return folder


def image_text(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = chat_tokenizer()
    text = {**TOWER, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": 0}
    config = AutoConfig.for_model(**{**CLIP, "text_config": text, "vision_config": {**TOWER, "image_size": 16}})
    AutoModel.from_config(config).save_pretrained(folder)
    ImageTextProcessor(tokenizer, ImageProcessor(16, 16, (0.5,) * 3, (0.5,) * 3)).save_pretrained(folder)
    Signature(
        problem="image_text", protocols=("embeds", "predicts"), inputs=("image", "text"), outputs=("embedding",), max_length=16
    ).write(folder)
    return folder

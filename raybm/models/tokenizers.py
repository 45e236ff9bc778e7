"""Tokenizers: the model's own, or one trained on the job's text.

| scheme    | pieces                                                | decode(encode(text))                                    |
|-----------|-------------------------------------------------------|---------------------------------------------------------|
| bpe       | byte-level merges; every text has tokens              | the NFC text                                            |
| unigram   | a language model over pieces, spaces as ▁             | the NFC text, where its characters were seen            |
| char      | every character a token                               | the NFC text, where its characters were seen            |
| wordpiece | words, then ##parts; each CJK character a word; BERT's | words with single spaces (whitespace is not kept)       |

All are deterministic in the texts, their order and the spec. References: Sennrich et al. 2016 (BPE), Kudo 2018 (unigram),
Schuster and Nakajima 2012 (WordPiece).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from raybm.core.errors import DataError, Unsupported, UserError
from raybm.models import chat
from raybm.models.checks import check_pretrained
from raybm.models.references import resolve
from raybm.models.signature import embedded_tokens, infer_signature
from raybm.models.spec import ModelInput, TokenizerSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer
    from transformers import PreTrainedTokenizerFast

    from raybm.core.storage import Storage

_SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
_BERT_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
}
_BYTES = 256


def tokenizer(spec: ModelInput, storage: Storage | None, texts: Callable[[], Iterator[str]]) -> PreTrainedTokenizerFast:
    """The model's own tokenizer, or for `scratch:` one trained on `texts()` (called only then). Its model_max_length is
    `spec.max_length`; what generates has a chat template. Raises UserError, DataError, Unsupported, and what `resolve` raises."""
    if spec.tokenizer is not None:
        return train(spec.tokenizer, texts, spec.max_length)
    from transformers import AutoTokenizer

    folder = resolve(spec.ref, storage)
    check_pretrained(spec, folder)  # a model that had yet to be fetched
    try:
        own: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError) as error:  # no tokenizer files, or one that comes as code
        what = f"its tokenizer cannot be loaded: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
        raise Unsupported(
            what, where=spec.ref, remedy="The folder needs tokenizer.json; code that comes with a model is never run."
        ) from error
    if (known := embedded_tokens(folder)) is not None and len(own) > known:
        what = f"the tokenizer has {len(own)} tokens, and the model knows {known}: it is not this model's."
        raise UserError(what, where="model.ref", remedy="Put the tokenizer that the model was trained with into its folder.")
    own.model_max_length = spec.max_length
    if own.pad_token is None:
        own.pad_token = own.eos_token
    if own.chat_template is None and _generates(folder):
        own.chat_template = chat.DEFAULT_TEMPLATE
    return own


def _generates(folder: Path) -> bool:
    try:
        return "generates" in infer_signature(folder).protocols
    except Unsupported:  # to be served as it is; it may well be trained
        return False


def train(spec: TokenizerSpec, texts: Callable[[], Iterator[str]], max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `spec.vocab_size` pieces, special tokens included, which come first (`<pad>`, `<unk>`, `<bos>`, `<eos>`, or
    BERT's). `texts` is called once, for wordpiece twice. Raises DataError where there is no text, UserError where the
    vocabulary is too small for the scheme."""
    from transformers import PreTrainedTokenizerFast

    special = _BERT_SPECIAL if spec.train == "wordpiece" else _SPECIAL
    ids = list(dict.fromkeys(special.values()))
    least = len(ids) + (_BYTES if spec.train == "bpe" else 1)
    if spec.vocab_size < least:
        what = f"{spec.vocab_size} is too small: {spec.train} needs {least}."
        raise UserError(what, where="model.tokenizer.vocab_size", remedy=f"Use {least} or more; 8000 is a good start.")
    return PreTrainedTokenizerFast(
        tokenizer_object=_TRAINERS[spec.train](spec, ids, texts),
        model_max_length=max_length,
        chat_template=chat.DEFAULT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        **special,
    )


def config_fields(trained: PreTrainedTokenizerFast) -> dict[str, int]:
    """What a model config must know of its tokenizer: vocab_size and the ids of the special tokens."""
    fields = {"vocab_size": len(trained)}
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id"):
        value = getattr(trained, name)
        if value is not None and not (name.startswith(("sep", "cls")) and trained.mask_token is None):
            fields[name] = value
    return fields


def _watched(texts: Iterator[str]) -> Iterator[str]:
    empty = True
    for text in texts:
        empty = empty and not text.strip()
        yield text
    if empty:
        raise DataError(
            "there is no text to train a tokenizer on.", where="model.tokenizer", remedy="Check the sources and the cleaning steps."
        )


def _bpe(spec: TokenizerSpec, special: list[str], texts: Callable[[], Iterator[str]]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.normalizer = _normalizer(spec)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=spec.vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(_watched(texts()), trainer)
    return backend


def _char(spec: TokenizerSpec, special: list[str], texts: Callable[[], Iterator[str]]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.WordLevel(unk_token=special[1]))
    backend.normalizer = _normalizer(spec)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(vocab_size=spec.vocab_size, special_tokens=special, show_progress=False)
    backend.train_from_iterator(_watched(texts()), trainer)
    return backend


def _unigram(spec: TokenizerSpec, special: list[str], texts: Callable[[], Iterator[str]]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.Unigram())
    backend.normalizer = _normalizer(spec)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # a prefix would swallow a text's own leading space
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(vocab_size=spec.vocab_size, special_tokens=special, unk_token=special[1], show_progress=False)
    backend.train_from_iterator(_watched(texts()), trainer)
    # The trainer adds up in the order of a hash table with a random seed: the last digits vary, and characters that it only keeps so as not
    # to lose them get steps of 1e-4 above the lowest score in any order. Rounded, with one score for those, and sorted, runs agree.
    pieces = [(piece, score) for piece, score in json.loads(backend.to_str())["model"]["vocab"] if piece not in special]
    lowest = min(score for _, score in pieces)
    kept = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in pieces)
    pieces = [(piece, round(lowest if len(piece) == 1 and score <= kept else score, 6)) for piece, score in pieces]
    pieces.sort(key=lambda item: (-item[1], item[0]))
    backend.model = models.Unigram([*((token, 0.0) for token in special), *pieces], unk_id=1)
    return backend


def _wordpiece(spec: TokenizerSpec, special: list[str], texts: Callable[[], Iterator[str]]) -> Tokenizer:
    """The trainer numbers ##characters in the order of a hash table with a random seed, and breaks ties between merges by number. So the
    alphabet (at most three quarters of the vocabulary, the most frequent first) is counted and numbered here."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.BertNormalizer(lowercase=spec.lowercase)])
    words = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in _watched(texts()):
        counts.update(normalizer.normalize_str(text))
    alphabet: list[str] = []
    inner: list[str] = []  # those that occur inside words: not Chinese characters, not punctuation
    for char, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if len(alphabet) + len(inner) >= spec.vocab_size * 3 // 4 - len(special):
            break
        if not char.isspace():
            alphabet.append(char)
            if len(words.pre_tokenize_str(normalizer.normalize_str(f"a{char}a"))) == 1:
                inner.append(f"##{char}")
    draft = Tokenizer(models.WordPiece(unk_token=special[1]))
    draft.normalizer, draft.pre_tokenizer = normalizer, words
    trainer = trainers.WordPieceTrainer(
        vocab_size=spec.vocab_size,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=[*special, *sorted(inner)],
        show_progress=False,
    )
    draft.train_from_iterator(texts(), trainer)
    backend = Tokenizer(models.WordPiece(draft.get_vocab(with_added_tokens=True), unk_token=special[1]))
    backend.normalizer, backend.pre_tokenizer, backend.decoder = normalizer, words, decoders.WordPiece()
    backend.add_special_tokens(special)
    frame = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=frame
    )
    return backend


def _normalizer(spec: TokenizerSpec) -> Normalizer:
    from tokenizers import normalizers

    return normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if spec.lowercase else [])])


_TRAINERS = {"bpe": _bpe, "char": _char, "unigram": _unigram, "wordpiece": _wordpiece}

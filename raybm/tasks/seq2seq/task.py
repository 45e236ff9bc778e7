"""Sequence to sequence: an encoder-decoder, cross-entropy of the target's tokens; its own answers are scored by chrF, BLEU, ROUGE-L."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from raybm.core.signature import Signature
from raybm.models.sequences import sources, targets
from raybm.tasks.baselines import WORDS
from raybm.tasks.batching import IGNORED, labelled, summed_cross_entropy, training_only
from raybm.tasks.protocol import Ask, Batch, LossSum, Row, Task
from raybm.tasks.seq2seq.spec import Seq2Seq

ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
CJK = re.compile("[぀-ヿ㐀-鿿]")
KANA = re.compile("[぀-ヿ]")


class Seq2SeqTask(Task):
    def __init__(self, spec: Seq2Seq) -> None:
        self.spec = spec

    def encode(self, rows: Sequence[Row], processor: Any, labels: Sequence[str], max_length: int) -> list[dict[str, Any]]:
        if not rows:
            return []
        read = sources(processor, [row["prompt"] for row in rows], max_length)
        written = targets(processor, [row["completion"] for row in rows], max_length)
        return [
            {"input_ids": source, "labels": target}
            if row["prompt"].strip() and row["completion"].strip()
            else {"_bad": "prompt or completion is blank"}
            for row, source, target in zip(rows, read, written, strict=True)
        ]

    def model(self, folder: Path | None, config: Mapping[str, Any], labels: Sequence[str], processor: Any) -> PreTrainedModel:
        if folder is not None:
            return AutoModelForSeq2SeqLM.from_pretrained(folder, **config, dtype=torch.float32, use_safetensors=True)
        special = {"pad_token_id": processor.pad_token_id, "eos_token_id": processor.eos_token_id, "forced_eos_token_id": None}
        settings = {"vocab_size": len(processor), **special, "decoder_start_token_id": processor.pad_token_id, **config}
        return AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)

    def collate(self, rows: Sequence[Row], processor: Any, seed: int | None = None) -> Batch:
        filled = rows or [{"input_ids": [processor.eos_token_id], "labels": [IGNORED]}]
        return labelled(filled, processor.pad_token_id or 0)

    def units(self, batch: Batch) -> torch.Tensor:
        return (batch["labels"] != IGNORED).sum()

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossSum:
        """The model shifts the labels to the right itself, to what its decoder reads."""
        logits = model(**batch, use_cache=False).logits
        return summed_cross_entropy(logits, batch["labels"], training_only(model, self.spec.label_smoothing))

    def predict(self, rows: Sequence[Row], ask: Ask) -> list[dict[str, Any]]:
        return ask([{"prompt": row["prompt"]} for row in rows])

    def score(self, predictions: Sequence[Row], rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        """Of the whole split: chrF (Popović 2015) and BLEU (Papineni et al. 2002), 0 to 100, as sacrebleu counts them (Post 2018), with
        its tokenizer for Chinese, or by characters for Japanese, where half of the truth has such; the mean F1 of ROUGE-1, -2 and -L
        (Lin 2004), 0 to 1."""
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu import corpus_bleu, corpus_chrf

        said, truth = [row["text"] for row in predictions], [row["completion"] for row in rows]
        rouge = RougeScorer(list(ROUGE.values()), tokenizer=_Words())
        overlaps = [rouge.score(*pair) for pair in zip(truth, said, strict=True)]
        return {
            "rows": len(truth),
            "chrf": float(corpus_chrf(said, [truth]).score),
            "bleu": float(corpus_bleu(said, [truth], tokenize=_parted(truth)).score),
            **{ours: sum(pair[theirs].fmeasure for pair in overlaps) / max(1, len(truth)) for ours, theirs in ROUGE.items()},
        }

    def baseline(self, train: Sequence[Row], labels: Sequence[str], seed: int) -> Callable[[Sequence[Row]], list[dict[str, Any]]] | None:
        """A translation memory: what was written for the most similar source of the training rows, by TF-IDF over pieces of words."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.neighbors import NearestNeighbors

        pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
        memory = NearestNeighbors(n_neighbors=1, metric="cosine").fit(pieces.fit_transform([row["prompt"] for row in train]))

        def recall(rows: Sequence[Row]) -> list[dict[str, Any]]:
            nearest = memory.kneighbors(pieces.transform([row["prompt"] for row in rows]), return_distance=False)
            return [{"text": train[place]["completion"]} for [place] in nearest.tolist()]

        return recall

    def signature(self, labels: Sequence[str], max_length: int) -> Signature:
        return Signature(problem="seq2seq", protocols=("generates",), inputs=("prompt",), outputs=("text",), max_length=max_length)


def _parted(texts: Sequence[str]) -> str:
    """sacrebleu's tokenizer for them."""
    for characters, tokenizer in ((KANA, "char"), (CJK, "zh")):
        if 2 * sum(bool(characters.search(text)) for text in texts) > len(texts):
            return tokenizer
    return "13a"


class _Words:
    """For rouge-score, whose own tokenizer drops every letter that is not English."""

    def tokenize(self, text: str) -> list[str]:
        words: list[str] = re.findall(str(WORDS["token_pattern"]), text.lower())
        return words

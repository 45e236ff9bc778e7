"""Extractive question answering: an encoder with two linear heads over the tokens, for where an answer starts and where it ends."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForQuestionAnswering, PreTrainedModel

from raybm.core.signature import Signature
from raybm.models.tabular import number
from raybm.models.tokenizers import config_fields
from raybm.models.windows import LONGEST_ANSWER, Window, windows
from raybm.tasks.batching import IGNORED, pad
from raybm.tasks.protocol import Ask, Batch, LossSum, Row, Task
from raybm.tasks.question_answering.baseline import answerer
from raybm.tasks.question_answering.spec import QuestionAnswering

ENDS = 2  # of an answer: the model tells each token's logit for either
ARTICLES = re.compile(r"\b(a|an|the)\b")
WORD = re.compile(r"[぀-ヿ㐀-鿿]|[^\s぀-ヿ㐀-鿿]+")  # a CJK character counts as a word


class QuestionAnsweringTask(Task):
    def __init__(self, spec: QuestionAnswering) -> None:
        self.spec = spec

    def encode(self, rows: Sequence[Row], processor: Any, labels: Sequence[str], max_length: int) -> list[dict[str, Any]]:
        """Of a context that is too long, the part that holds the answer with the most around it."""
        places = [_place(row) for row in rows]
        parts: list[list[Window]] = [[] for _ in rows]
        for part in windows(processor, [row["question"] for row in rows], [row["context"] for row in rows], max_length):
            parts[part.row].append(part)
        made: list[dict[str, Any]] = []
        for place, found in zip(places, parts, strict=True):
            held = [encoded for part in found if (encoded := _encoded(part, *place))] if place else []
            if not held:
                made.append({"_bad": f"the answer does not fit into {max_length} tokens" if place else "the answer is not in the context"})
            elif held[0]["ends"][0] - held[0]["starts"][0] >= LONGEST_ANSWER:
                made.append({"_bad": f"the answer has more than {LONGEST_ANSWER} tokens"})
            else:
                made.append(max(held, key=lambda row: min(row["starts"][0], len(row["input_ids"]) - row["ends"][0])))
        return made

    def model(self, folder: Path | None, config: Mapping[str, Any], labels: Sequence[str], processor: Any) -> PreTrainedModel:
        if folder is not None:
            return AutoModelForQuestionAnswering.from_pretrained(
                folder, **{"num_labels": ENDS, **config}, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True
            )
        settings = {**config_fields(processor), "num_labels": ENDS, **config}
        return AutoModelForQuestionAnswering.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)

    def collate(self, rows: Sequence[Row], processor: Any, seed: int | None = None) -> Batch:
        filled = rows or [{"input_ids": [processor.pad_token_id or 0], "starts": [IGNORED], "ends": [IGNORED]}]
        ids, mask = pad([row["input_ids"] for row in filled], processor.pad_token_id or 0)
        batch = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in filled[0]:
            batch["token_type_ids"], _ = pad([row["token_type_ids"] for row in filled], 0)
        return batch | {name: torch.tensor([int(row[name][0]) for row in filled]) for name in ("starts", "ends")}

    def units(self, batch: Batch) -> torch.Tensor:
        return (batch["starts"] != IGNORED).sum()

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossSum:
        """The mean of both ends' cross-entropies; right is a row with both ends right."""
        output = model(**{name: tensor for name, tensor in batch.items() if name not in ("starts", "ends")})
        right = batch["starts"] != IGNORED
        total = torch.zeros((), device=right.device)
        for logits, wanted in ((output.start_logits, batch["starts"]), (output.end_logits, batch["ends"])):
            logits = logits.float().masked_fill(batch["attention_mask"] == 0, -1e4)
            total = total + F.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum") / 2
            right = right & (logits.detach().argmax(-1) == wanted)
        return LossSum(total, right.sum())

    def predict(self, rows: Sequence[Row], ask: Ask) -> list[dict[str, Any]]:
        return ask([{"question": row["question"], "context": row["context"]} for row in rows])

    def baseline(self, train: Sequence[Row], labels: Sequence[str], seed: int) -> Callable[[Sequence[Row]], list[dict[str, Any]]] | None:
        return answerer([row["question"] for row in train], [row["answer"] for row in train])

    def score(self, predictions: Sequence[Row], rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
        """SQuAD's exact match and F1 of words (Rajpurkar et al. 2016), means over the rows, after `normalized`."""
        pairs = [(normalized(said["answer"]), normalized(row["answer"])) for said, row in zip(predictions, rows, strict=True)]
        return {
            "rows": len(pairs),
            "exact_match": sum(said == truth for said, truth in pairs) / max(1, len(pairs)),
            "f1": sum(overlap(said, truth) for said, truth in pairs) / max(1, len(pairs)),
        }

    def signature(self, labels: Sequence[str], max_length: int) -> Signature:
        return Signature(
            problem="question_answering",
            protocols=("predicts",),
            inputs=("question", "context"),
            outputs=("answer", "score", "start", "end"),
            max_length=max_length,
        )


def _place(row: Row) -> tuple[int, int] | None:
    """Where the answer stands in the context, in characters; None where it does not."""
    answer, context = row["answer"].strip(), row["context"]
    wanted = number(row.get("answer_start")) or 0  # "12.0", where a table had gaps
    found = [match.start() for match in re.finditer(re.escape(answer), context)] if answer else []
    start = min(found, key=lambda at: abs(at - wanted), default=None)
    return None if start is None else (start, start + len(answer))


def _encoded(part: Window, start: int, end: int) -> dict[str, Any] | None:
    """The window with the tokens that the characters from `start` to `end` begin and end in; None where it does not hold them all."""
    at = part.spans
    inside = (at[:, 1] > at[:, 0]).nonzero()[0]
    touched = inside[(at[inside, 1] > start) & (at[inside, 0] < end)]
    if not len(touched) or at[touched[0], 0] > start or at[touched[-1], 1] < end:
        return None
    return {**part.inputs, "starts": [int(touched[0])], "ends": [int(touched[-1])]}


def normalized(answer: str) -> str:
    """Lower case without punctuation, symbols and English articles, words parted by one blank; what has nothing else stays as it is."""
    kept = "".join(char for char in unicodedata.normalize("NFKC", answer).lower() if unicodedata.category(char)[0] not in "PS")
    return " ".join(ARTICLES.sub(" ", kept).split()) or answer.strip()


def overlap(said: str, truth: str) -> float:
    """F1 of the words of two normalised answers."""
    ours, theirs = Counter(WORD.findall(said)), Counter(WORD.findall(truth))
    common = sum((ours & theirs).values())
    return 2 * common / (ours.total() + theirs.total()) if common else float(said == truth)

"""Extractive question answering: the part of a context that answers a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from raybm.core.errors import UserError
from raybm.engines.encoders.encoding import Encoder
from raybm.models.windows import LONGEST_ANSWER, windows


class Reader(Encoder):
    """Answers out of contexts (Predicts). A context that is longer than the model takes is read in windows that overlap; the answer is
    the likeliest span of all of them."""

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """`score`: the probability of both ends in their window. `start`, `end`: characters of the context."""
        self.check()
        questions, contexts = ([_text(row, i, name) for i, row in enumerate(rows)] for name in ("question", "context"))
        with self.tokenizing:
            parts = windows(self.tokenizer, questions, contexts, self.signature.max_length)
        answers: list[dict[str, Any]] = [{"answer": "", "score": 0.0, "start": 0, "end": 0, "tokens": 0} for _ in rows]
        best = [-np.inf] * len(rows)
        for places, inputs in self.padded([part.inputs for part in parts]):
            with torch.inference_mode():
                output = self.model(**inputs)
            for place, starts, ends in zip(places, output.start_logits.float().cpu(), output.end_logits.float().cpu(), strict=True):
                part = parts[place]
                answers[part.row]["tokens"] += len(part.spans)
                logit, score, first, last = _span(starts[: len(part.spans)], ends[: len(part.spans)], part.spans)
                if logit > best[part.row]:
                    best[part.row] = logit
                    start, end = int(part.spans[first, 0]), int(part.spans[last, 1])
                    answers[part.row] |= {"answer": contexts[part.row][start:end], "score": score, "start": start, "end": end}
        return answers


def _span(starts: torch.Tensor, ends: torch.Tensor, spans: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[float, float, int, int]:
    """The sum of the logits of the best span's ends, its probability, and its first and last token; a sum of -inf where the window
    holds nothing of the context."""
    outside = torch.from_numpy((spans < 0).any(axis=1))
    starts, ends = starts.masked_fill(outside, -torch.inf), ends.masked_fill(outside, -torch.inf)
    allowed = torch.ones(len(starts), len(ends), dtype=torch.bool).triu().tril(LONGEST_ANSWER - 1)
    sums = (starts[:, None] + ends[None, :]).masked_fill(~allowed, -torch.inf)
    first, last = divmod(int(sums.argmax()), len(ends))
    logit = float(sums[first, last])
    score = float(torch.exp(sums[first, last] - starts.logsumexp(0) - ends.logsumexp(0))) if np.isfinite(logit) else 0.0
    return logit, score, first, last


def _text(row: Mapping[str, Any], number: int, name: str) -> str:
    text = row.get(name)
    if not isinstance(text, str):
        raise UserError(f"row {number} has no {name}.", where=name, remedy="Give each row a string `question` and a string `context`.")
    return text

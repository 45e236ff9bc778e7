"""What a reader has to beat: answers that look like those of like questions, without any reading."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raybm.tasks.baselines import WORDS

NEAREST = 10  # questions
PARTS = (re.compile(r"(?<=[.!?。！？])\s*"), re.compile(r"[.!?;,:()。！？；，：（）]\s*"))  # sentences, and what stands between marks


def answerer(questions: Sequence[str], answers: Sequence[str]) -> Callable[[Sequence[Any]], list[dict[str, Any]]]:
    """From the questions and answers of training: rows → {"answer"}. The sentence or part of one in the context that is most like the
    answers to the nearest questions, by their nearness (TF-IDF; words of questions, characters of answers)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(**WORDS)
    chars = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    asked, answered = words.fit_transform(questions), chars.fit_transform(answers)

    def predict(rows: Sequence[Any]) -> list[dict[str, Any]]:
        made = []
        near = words.transform([row["question"] for row in rows]) @ asked.T
        for place, row in enumerate(rows):
            likely = np.argsort(-near[place].toarray()[0], kind="stable")[:NEAREST]
            wanted = near[place][:, likely] @ answered[likely]
            parts = [part for cut in PARTS for part in (piece.strip() for piece in cut.split(row["context"])) if part]
            like = (chars.transform(parts) @ wanted.T).toarray()[:, 0] if parts else np.zeros(0)
            made.append({"answer": parts[int(np.argmax(like))] if parts else ""})
        return made

    return predict

"""Simple models that a model of ours has to beat, shared by tasks on text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WORDS = {"token_pattern": r"[぀-ヿ㐀-鿿]|[^\W぀-ヿ㐀-鿿]+", "ngram_range": (1, 2), "sublinear_tf": True}
"""TF-IDF of words and pairs of words. A CJK character counts as a word, since nothing parts the words there."""


def linear_text_classifier(texts: Sequence[str], labels: Sequence[str], seed: int) -> Any:
    """A linear support vector machine over TF-IDF; has scikit-learn's `predict(texts)`."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    return make_pipeline(TfidfVectorizer(**WORDS), LinearSVC(random_state=seed)).fit(texts, labels)

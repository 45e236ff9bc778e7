"""Simple models that a model of ours has to beat, shared by tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from raybm.models import dataurl
from raybm.models.images import ImageProcessor

SIDE = 28  # pixels
WORDS = {"token_pattern": r"[぀-ヿ㐀-鿿]|[^\W぀-ヿ㐀-鿿]+", "ngram_range": (1, 2), "sublinear_tf": True}
"""TF-IDF of words and pairs of words. A CJK character counts as a word, since nothing parts the words there."""
WEIGHTS = 1 << 27  # numbers that a linear model may have, a gigabyte: of many classes, the most frequent words only
CATEGORIES = 200  # of a column, the most frequent ones


def linear_text_classifier(texts: Sequence[str], labels: Sequence[str], seed: int) -> Any:
    """A linear support vector machine over TF-IDF; has scikit-learn's `predict(texts)`."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    words = TfidfVectorizer(**WORDS, max_features=WEIGHTS // len(set(labels)))
    return make_pipeline(words, LinearSVC(random_state=seed)).fit(texts, labels)


def linear_text_tagger(
    texts: Sequence[str], tags: Sequence[Sequence[str]], labels: Sequence[str], seed: int
) -> Callable[[Sequence[str]], list[list[str]]]:
    """A linear support vector machine over TF-IDF for each of `labels` against the rest: texts → the labels of each."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    wanted = np.array([[int(label in of_text) for label in labels] for of_text in tags])
    words = TfidfVectorizer(**WORDS, max_features=WEIGHTS // len(labels))
    model = make_pipeline(words, OneVsRestClassifier(LinearSVC(random_state=seed))).fit(texts, wanted)
    return lambda texts: [[label for label, yes in zip(labels, row, strict=True) if yes] for row in model.predict(texts)]


def linear_text_regression(texts: Sequence[str], targets: Sequence[float]) -> Any:
    """Ridge regression over TF-IDF; has scikit-learn's `predict(texts)`."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    return make_pipeline(TfidfVectorizer(**WORDS), Ridge()).fit(texts, targets)


def linear_table_regression(
    rows: Sequence[Mapping[str, Any]], numeric: Sequence[str], categorical: Sequence[str], targets: Sequence[float]
) -> Callable[[Sequence[Mapping[str, Any]]], list[float]]:
    """Ridge regression over standardised numbers and one-hot categories, its penalty chosen by leave-one-out validation."""
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    often = {name: {value for value, _ in Counter(str(row[name]) for row in rows).most_common(CATEGORIES)} for name in categorical}

    def category(row: Mapping[str, Any], name: str) -> str:
        return value if (value := str(row[name])) in often[name] else ""

    def features(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{name: float(row[name]) for name in numeric} | {name: category(row, name) for name in categorical} for row in rows]

    model = make_pipeline(DictVectorizer(sparse=False), StandardScaler(), RidgeCV(np.logspace(-3, 3, 13))).fit(features(rows), targets)
    return lambda rows: [float(value) for value in model.predict(features(rows))]


def small_pixels(images: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Pictures as data URLs → (pictures, 3 × 28 × 28), from 0 to 1: what a simple model sees of them."""
    processor = ImageProcessor(SIDE, SIDE, (0.0,) * 3, (1.0,) * 3)
    return (processor.pixels([dataurl.decode(image) for image in images]).reshape(len(images), -1) / 255).astype(np.float32)

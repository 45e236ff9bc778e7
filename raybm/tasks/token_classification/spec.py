"""What a tagger of tokens is asked to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from raybm.core.spec import Spec
from raybm.tasks.labels import Smoothing

if TYPE_CHECKING:
    from raybm.tasks.protocol import Task


class TokenClassification(Spec):
    """Entities in a sentence: a tag for each of its tokens (lists `tokens` and `tags`), B-X where an entity of the kind X begins, I-X
    inside it, O outside. The first piece of a token stands for it."""

    kind: Literal["token_classification"] = "token_classification"
    tags: tuple[str, ...] | None = None
    """The tags in their order; a row with another one is a bad row. Default: those of the training split, sorted."""
    label_smoothing: Smoothing = 0.0
    """Share of the target probability that all tags get alike in training (Szegedy et al. 2016, arXiv:1512.00567)."""

    INPUT: ClassVar[Literal["text"]] = "text"
    PREDICTS: ClassVar[bool] = True
    METRICS: ClassVar[tuple[str, ...]] = ("f1", "precision", "recall", "token_accuracy", "loss")

    def columns(self) -> tuple[tuple[str, ...], ...]:
        return (("tokens", "tags"),)

    def build(self) -> Task:
        from raybm.tasks.token_classification.task import TokenClassificationTask

        return TokenClassificationTask(self)

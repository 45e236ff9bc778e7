"""What a text classifier is asked to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from raybm.core.spec import Spec

if TYPE_CHECKING:
    from raybm.tasks.protocol import Task


class TextClassification(Spec):
    """One label out of several for a text (column `text`, and `label` unless the labels are named here)."""

    kind: Literal["text_classification"] = "text_classification"
    labels: tuple[str, ...] | None = None
    """The labels in their order; a row with another one is a bad row. Default: those of the training split, sorted."""

    INPUT: ClassVar[Literal["text"]] = "text"
    PREDICTS: ClassVar[bool] = True
    METRICS: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "micro_f1", "macro_precision", "macro_recall", "loss")

    def columns(self) -> tuple[tuple[str, ...], ...]:
        return (("text", "label"),)

    def build(self) -> Task:
        from raybm.tasks.text_classification.task import TextClassificationTask

        return TextClassificationTask(self)

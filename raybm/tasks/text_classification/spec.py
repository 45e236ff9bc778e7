"""What a text classifier is asked to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from raybm.core.spec import Check, Spec
from raybm.tasks.labels import LABELS, Smoothing

if TYPE_CHECKING:
    from raybm.tasks.protocol import Task

AVERAGES = ("macro_f1", "micro_f1", "macro_precision", "macro_recall", "micro_precision", "micro_recall")


class TextClassification(Spec):
    """One label out of several for a text (columns `text` and `label`), or with `multi_label` any number of them, none included
    (columns `text` and `labels`, a list)."""

    kind: Literal["text_classification"] = "text_classification"
    labels: tuple[str, ...] | None = None
    """The labels in their order; a row with another one is a bad row. Default: those of the training split, sorted."""
    multi_label: bool = False
    """Decide on each label for itself: a text has those with a probability of 0.5 or more."""
    label_smoothing: Smoothing = 0.0
    """Share of the target probability that all labels get alike in training (Szegedy et al. 2016, arXiv:1512.00567)."""

    INPUT: ClassVar[Literal["text"]] = "text"
    PREDICTS: ClassVar[bool] = True
    CHECKS: ClassVar[tuple[Check, ...]] = (
        LABELS,
        Check(
            ("label_smoothing", "multi_label"),
            lambda share, several: ("smoothing shares out one label.", "Drop it, or `multi_label`.") if share and several else None,
        ),
    )

    @property
    def METRICS(self) -> tuple[str, ...]:
        return (*AVERAGES, "subset_accuracy" if self.multi_label else "accuracy", "loss")

    def columns(self) -> tuple[tuple[str, ...], ...]:
        return (("text", "labels" if self.multi_label else "label"),)

    def build(self) -> Task:
        if self.multi_label:
            from raybm.tasks.text_classification.several import MultiLabelTask

            return MultiLabelTask(self)
        from raybm.tasks.text_classification.task import TextClassificationTask

        return TextClassificationTask(self)

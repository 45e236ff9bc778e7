"""What a classifier of pictures is asked to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from raybm.core.spec import Check, Spec
from raybm.tasks.labels import LABELS, Smoothing

if TYPE_CHECKING:
    from raybm.tasks.protocol import Task

Share = Annotated[float, Field(ge=0, lt=1)]


class Augment(Spec):
    """Pictures as training sees them, drawn anew every time; all off by default. Evaluation sees them as they are."""

    crop: Share = 0.0
    """Up to this share of each side is cut away, anywhere, and the rest brought to full size."""
    flip: bool = False
    """Left and right are exchanged in half of the pictures."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Turned by up to so many degrees, either way."""
    scale: Share = 0.0
    """Made larger or smaller by up to this share."""
    colour: Share = 0.0
    """Brightness, contrast and, of colour pictures, saturation change by up to this share."""
    mixup: NonNegativeFloat = 0.0
    """Two pictures are laid over each other and count for both labels (Zhang et al. 2018, arXiv:1710.09412); the share of the first is
    drawn from Beta(mixup, mixup). 0.2 is usual."""


class ImageClassification(Spec):
    """One label out of several for a picture (columns `image`, a data URL, and `label`)."""

    kind: Literal["image_classification"] = "image_classification"
    labels: tuple[str, ...] | None = None
    """The labels in their order; a row with another one is a bad row. Default: those of the training split, sorted."""
    label_smoothing: Smoothing = 0.0
    """Share of the target probability that all labels get alike in training (Szegedy et al. 2016, arXiv:1512.00567)."""
    augment: Augment = Augment()

    INPUT: ClassVar[Literal["image"]] = "image"
    PREDICTS: ClassVar[bool] = True
    METRICS: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "micro_f1", "macro_precision", "macro_recall", "loss")
    CHECKS: ClassVar[tuple[Check, ...]] = (LABELS,)

    def columns(self) -> tuple[tuple[str, ...], ...]:
        return (("image", "label"),)

    def build(self) -> Task:
        from raybm.tasks.image_classification.task import ImageClassificationTask

        return ImageClassificationTask(self)

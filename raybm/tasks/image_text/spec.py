"""What a model of pictures and texts is asked to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from raybm.core.spec import Spec

if TYPE_CHECKING:
    from raybm.tasks.protocol import Task


class ImageText(Spec):
    """Vectors of pictures and texts in one space (columns `image`, a data URL, and `text`): a pair comes close, and everything else in
    the micro-batch goes away (CLIP: Radford et al. 2021, arXiv:2103.00020). The larger `train.micro_batch`, the better."""

    kind: Literal["image_text"] = "image_text"

    INPUT: ClassVar[Literal["image_text"]] = "image_text"
    PREDICTS: ClassVar[bool] = True
    METRICS: ClassVar[tuple[str, ...]] = (
        "image_to_text_recall_at_1",
        "text_to_image_recall_at_1",
        "image_to_text_recall_at_5",
        "text_to_image_recall_at_5",
        "loss",
    )

    def columns(self) -> tuple[tuple[str, ...], ...]:
        return (("image", "text"),)

    def build(self) -> Task:
        from raybm.tasks.image_text.task import ImageTextTask

        return ImageTextTask(self)

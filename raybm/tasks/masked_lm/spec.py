"""What a masked language model is asked to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from raybm.core.spec import Spec
from raybm.tasks.labels import Smoothing

if TYPE_CHECKING:
    from raybm.tasks.protocol import Task


class MaskedLm(Spec):
    """The words that are hidden in a text (column `text`; Devlin et al. 2018, arXiv:1810.04805). Long texts are cut into pieces of
    `model.max_length`. Needs a tokenizer with a mask token: wordpiece, of those that raybm trains."""

    kind: Literal["masked_lm"] = "masked_lm"
    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Of each piece's tokens, one at least, that are to be predicted: 80 % of these become the mask token, 10 % another one, 10 % stay."""
    label_smoothing: Smoothing = 0.0
    """Share of the target probability that all tokens get alike in training (Szegedy et al. 2016, arXiv:1512.00567)."""

    INPUT: ClassVar[Literal["text"]] = "text"
    PREDICTS: ClassVar[bool] = False
    METRICS: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "token_accuracy")

    def columns(self) -> tuple[tuple[str, ...], ...]:
        return (("text",),)

    def build(self) -> Task:
        from raybm.tasks.masked_lm.task import MaskedLmTask

        return MaskedLmTask(self)

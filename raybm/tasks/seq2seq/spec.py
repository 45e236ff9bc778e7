"""What an encoder-decoder is asked to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from raybm.core.spec import Spec
from raybm.tasks.labels import Smoothing

if TYPE_CHECKING:
    from raybm.tasks.protocol import Task


class Seq2Seq(Spec):
    """From one text (`prompt`) to another (`completion`), by an encoder-decoder (T5, BART): translation, summarisation.
    `model.max_length` holds for either side; what is longer is cut."""

    kind: Literal["seq2seq"] = "seq2seq"
    label_smoothing: Smoothing = 0.0
    """Share of the target probability that all tokens get alike in training (Szegedy et al. 2016, arXiv:1512.00567)."""

    INPUT: ClassVar[Literal["text"]] = "text"
    PREDICTS: ClassVar[bool] = True
    METRICS: ClassVar[tuple[str, ...]] = ("chrf", "bleu", "rouge_1", "rouge_2", "rouge_l", "loss", "perplexity", "token_accuracy")

    def columns(self) -> tuple[tuple[str, ...], ...]:
        return (("prompt", "completion"),)

    def build(self) -> Task:
        from raybm.tasks.seq2seq.task import Seq2SeqTask

        return Seq2SeqTask(self)

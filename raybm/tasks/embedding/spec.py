"""What an embedding model is asked to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveFloat

from raybm.core.spec import Spec

if TYPE_CHECKING:
    from raybm.tasks.protocol import Task


class Embedding(Spec):
    """Vectors of texts in which what belongs together (`anchor` and `positive`: question and answer, text and translation) comes close
    and everything else in the micro-batch goes away: the larger `train.micro_batch`, the harder and the better."""

    kind: Literal["embedding"] = "embedding"
    temperature: PositiveFloat = 0.05
    """What cosines are divided by: the lower, the more the nearest wrong ones count."""

    INPUT: ClassVar[Literal["text"]] = "text"
    PREDICTS: ClassVar[bool] = True
    METRICS: ClassVar[tuple[str, ...]] = ("recall_at_1", "recall_at_10", "mrr", "loss")

    def columns(self) -> tuple[tuple[str, ...], ...]:
        return (("anchor", "positive"),)

    def build(self) -> Task:
        from raybm.tasks.embedding.task import EmbeddingTask

        return EmbeddingTask(self)

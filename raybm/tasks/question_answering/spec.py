"""What a reader that answers questions is asked to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from raybm.core.spec import Spec

if TYPE_CHECKING:
    from raybm.tasks.protocol import Task


class QuestionAnswering(Spec):
    """Where in `context` the answer to `question` stands: extractive, as in SQuAD. `answer` is the text itself; where it stands more than
    once, the one next to `answer_start` (a position in characters) counts, or the first. Rows whose answer has more than 64 tokens are bad
    rows: none that long is ever given."""

    kind: Literal["question_answering"] = "question_answering"

    INPUT: ClassVar[Literal["text"]] = "text"
    PREDICTS: ClassVar[bool] = True
    METRICS: ClassVar[tuple[str, ...]] = ("f1", "exact_match", "loss")

    def columns(self) -> tuple[tuple[str, ...], ...]:
        return ("question", "context", "answer"), ("question", "context", "answer", "answer_start")

    def build(self) -> Task:
        from raybm.tasks.question_answering.task import QuestionAnsweringTask

        return QuestionAnsweringTask(self)

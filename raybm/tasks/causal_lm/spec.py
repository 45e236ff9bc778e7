"""What a causal language model is asked to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from raybm.core.spec import Spec
from raybm.tasks.labels import Smoothing

if TYPE_CHECKING:
    from raybm.tasks.protocol import Task


class CausalLm(Spec):
    """The next token: of running text (`text`, packed: no attention from one text to another), or of the answers in a conversation
    (`messages`, or `prompt` + `completion`), rendered with the model's chat template; only the answers count for the loss. What
    has learnt conversations is asked by `messages`: a bare `prompt` is only gone on with."""

    kind: Literal["causal_lm"] = "causal_lm"
    system_prompt: str | None = None
    """Put before conversations that have no system message. The model does not keep it: who asks gives it again."""

    packing: bool = False
    """Put several conversations into one sequence of `model.max_length`, without attention between them. Running text always is."""
    label_smoothing: Smoothing = 0.0
    """Share of the target probability that all tokens get alike in training (Szegedy et al. 2016, arXiv:1512.00567)."""

    INPUT: ClassVar[Literal["text"]] = "text"
    PREDICTS: ClassVar[bool] = False
    METRICS: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "token_accuracy")

    def columns(self) -> tuple[tuple[str, ...], ...]:
        return ("text",), ("messages",), ("prompt", "completion")

    def build(self) -> Task:
        from raybm.tasks.causal_lm.task import CausalLmTask

        return CausalLmTask(self)

"""What a language model is asked to prefer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat

from raybm.core.spec import Spec

if TYPE_CHECKING:
    from raybm.tasks.protocol import Task


class Preference(Spec):
    """Of two answers to a `prompt`, the one that people preferred (`chosen`, not `rejected`), by direct preference optimisation against
    the model that training starts from, which every worker holds a second time. It must be a model that answers already."""

    kind: Literal["preference"] = "preference"
    beta: PositiveFloat = 0.1
    """How dear it is to leave the model that training starts from: the higher, the nearer the trained one stays."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the preferences that are taken to be the wrong way round (conservative DPO)."""
    system_prompt: str | None = None
    """Put before every prompt."""

    INPUT: ClassVar[Literal["text"]] = "text"
    PREDICTS: ClassVar[bool] = False
    METRICS: ClassVar[tuple[str, ...]] = ("accuracy", "loss")

    def columns(self) -> tuple[tuple[str, ...], ...]:
        return (("prompt", "chosen", "rejected"),)

    def build(self) -> Task:
        from raybm.tasks.preference.task import PreferenceTask

        return PreferenceTask(self)

"""What a regression is asked to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from raybm.core.spec import Check, Spec

if TYPE_CHECKING:
    from raybm.tasks.protocol import Task


class Features(Spec):
    """Columns of a table that a model reads, by their standard names."""

    numeric: tuple[str, ...] = ()
    """Numbers; they are centred and scaled by the training split's mean and standard deviation."""
    categorical: tuple[str, ...] = ()
    """Words; one that the training split does not have counts as "any other"."""

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(
            ("numeric", "categorical"),
            lambda numeric, categorical: (
                ("there are no columns.", "Name some.")
                if not numeric + categorical
                else ("label is what is to be predicted.", "Leave it out.")
                if "label" in numeric + categorical
                else ("a column is named twice.", "Name it once.")
                if len({*numeric, *categorical}) < len(numeric + categorical)
                else None
            ),
        ),
    )


class Regression(Spec):
    """A number (column `label`) for a text (column `text`), or for a row of a table: then `features` names its columns, and the model
    is `scratch:raybm_mlp`. The model learns standardised numbers, and its predictions come back in the data's units."""

    kind: Literal["regression"] = "regression"
    features: Features | None = None
    """The columns of a table. Default: the rows are texts."""
    loss: Literal["squared", "huber"] = "squared"
    """Of the standardised error; huber: squared up to one standard deviation and linear beyond, so that odd rows weigh less."""

    PREDICTS: ClassVar[bool] = True
    METRICS: ClassVar[tuple[str, ...]] = ("rmse", "mae", "r2", "spearman", "loss")

    @property
    def INPUT(self) -> Literal["text", "columns"]:
        return "columns" if self.features else "text"

    def columns(self) -> tuple[tuple[str, ...], ...]:
        return ((*(self.features.numeric + self.features.categorical if self.features else ("text",)), "label"),)

    def build(self) -> Task:
        from raybm.tasks.regression.task import RegressionTask

        return RegressionTask(self)

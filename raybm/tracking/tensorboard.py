"""TensorBoard's event files in the run's folder. Always written."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from raybm.tracking.protocol import numbers

FOLDER = "tensorboard"


class TensorBoard:
    def __init__(self, folder: Path) -> None:
        self.folder, self.step = folder / FOLDER, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()

    @cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # torch loads here: a run that has nothing to do needs neither

        return SummaryWriter(str(self.folder))

    def event(self, kind: str, fields: dict[str, Any]) -> None:
        self.step = fields.get("step", self.step)
        if kind != "stage":
            for name, value in numbers(kind, fields).items():
                self._writer.add_scalar(name, value, self.step)
        if kind == "trial":
            values = {
                path: value if isinstance(value, bool | int | float | str) else json.dumps(value)
                for path, value in fields["values"].items()
            }
            scores = {name: value for name, value in fields.items() if "." in name}
            self._writer.add_hparams(values, scores, run_name=f"trial {fields['step']}-{fields['repeat']}")

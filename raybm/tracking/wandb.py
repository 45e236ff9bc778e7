"""Weights & Biases (extra `tracking`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from raybm.core.errors import UserError
from raybm.core.spec import Spec
from raybm.tracking.protocol import Tracker, missing, numbers

START_TIMEOUT_S = 60


class Wandb(Spec):
    """A run of a W&B project, with the job as its config. The key comes from WANDB_API_KEY or `wandb login`."""

    kind: Literal["wandb"] = "wandb"
    project: str | None = None
    """Default: the job's name."""
    entity: str | None = None
    """The user or team it belongs to. Default: the key's own."""
    offline: bool = False
    """Write into the run's folder only; `wandb sync` brings it up later."""

    def start(self, run: str, job: Mapping[str, Any], folder: Path) -> Tracker:
        return WandbRun(self, run, job, folder)


class WandbRun:
    """What is logged goes to W&B's own process, which sends it."""

    def __init__(self, spec: Wandb, run: str, job: Mapping[str, Any], folder: Path) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to W&B's makers
        try:
            import wandb
        except ImportError as error:
            raise missing("W&B", "tracking.kind", error) from None
        try:
            if not spec.offline and not wandb.login(prompt=False):  # without, `init` would ask at the terminal
                remedy = "Set WANDB_API_KEY, run `wandb login`, or set `offline: true`."
                raise UserError("there is no key for W&B.", where="tracking.kind", remedy=remedy)
            self.run = wandb.init(
                project=spec.project or str(job["name"]),
                entity=spec.entity,
                id=run,
                name=run,
                config=dict(job),
                dir=str(folder),
                mode="offline" if spec.offline else "online",
                settings=wandb.Settings(silent=True, console="off", init_timeout=START_TIMEOUT_S, x_disable_stats=True, disable_git=True),
            )
        except wandb.Error as error:
            raise UserError(f"W&B refuses: {error}", where="tracking", remedy="Check the key, project and entity.") from error
        self.run.define_metric("*", step_metric="step")  # steps that are done again after a restart go back
        self.step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.run.finish(exit_code=0 if kind is None else 1)

    def event(self, kind: str, fields: dict[str, Any]) -> None:
        self.step = fields.get("step", self.step)
        if kind != "stage":
            self.run.log({**numbers(kind, fields), "step": self.step})

"""Where a run's numbers go beside metrics.jsonl: TensorBoard's files always, and the experiment trackers that the job names.

A tracker is a spec with a literal `kind` and a `start()` that imports its library; to add one: write its file, add it to the union.
Trackers listen to the run's events in the driver, so nothing in a training step waits for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from raybm.tracking.mlflow import Mlflow
from raybm.tracking.protocol import Listener
from raybm.tracking.tensorboard import TensorBoard
from raybm.tracking.wandb import Wandb

TrackerSpec = Annotated[Mlflow | Wandb, Field(discriminator="kind")]

__all__ = ["Mlflow", "TrackerSpec", "Wandb", "tracked"]


@contextmanager
def tracked(specs: Sequence[Mlflow | Wandb], run: str, job: Mapping[str, Any], folder: Path) -> Iterator[list[Listener]]:
    """What listens to the events of the run; it is told how the run ended when the block does. `job`: its canonical spec; `folder`: the
    run's own. Raises UserError for a tracker that is not installed, or that refuses us."""
    with ExitStack() as held:
        yield [held.enter_context(TensorBoard(folder)).event, *(held.enter_context(each.start(run, job, folder)).event for each in specs)]

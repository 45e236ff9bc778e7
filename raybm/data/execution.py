"""Running a Ray Data pipeline: without bars and chatter, with a deadline, and with raybm's own errors as they were raised."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from raybm.core.errors import DeadlineExceeded, RaybmError

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

STALL_TIMEOUT_S = 600.0
"""Without a block done anywhere."""


def from_items(items: Sequence[Any]) -> Dataset:
    """A block an item, with its JSON in column `item`."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a task's error is raised by `batches` as well
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray.data.from_items([{"item": json.dumps(item)} for item in items], override_num_blocks=len(items))


def batches(data: Dataset, where: str, block_bytes: int = 1) -> Iterator[pa.Table]:
    """The blocks of a pipeline as they are done. A task's output goes on in blocks of about `block_bytes`, with 1 as one-row tables,
    each as soon as the task yields it (Ray would hold back all of it until the task ends).

    Raises DeadlineExceeded where Ray places no task or none yields for STALL_TIMEOUT_S, what a task raised, and RaybmError
    where a process of Ray's was lost."""
    import ray
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError, RayTaskError

    data.context.print_on_execution_start = False
    data.context.target_max_block_size = block_bytes
    data.context.execution_no_progress_timeout_s = STALL_TIMEOUT_S
    try:
        yield from data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except ExecutionTimeoutError:
        free, there = ray.available_resources(), ray.cluster_resources()
        counts = ", ".join(f"{free.get(name, 0):g} of {there.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
        raise DeadlineExceeded(
            f"nothing has finished for {STALL_TIMEOUT_S:.0f} s; free: {counts}.", where=where, remedy="Free some, or add a node."
        ) from None
    except RayTaskError as error:
        if isinstance(error.cause, RaybmError):
            raise error.cause from None
        raise
    except RayError as error:  # OutOfMemoryError, WorkerCrashedError, ActorDiedError, ObjectLostError, ...
        what = next(iter(str(error).strip().splitlines()), "").rstrip(". ")
        remedy = "The same command goes on. Where memory ran out, use fewer CPUs at a time, smaller batches, or nodes with more of it."
        raise RaybmError(f"a process of Ray's was lost: {type(error).__name__}: {what}.", where=where, remedy=remedy) from error

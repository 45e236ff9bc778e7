"""raybm plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raybm.cli.jobs import SET, say


def plan(
    spec: Annotated[Path, typer.Argument(help="The job's YAML.")],
    overrides: Annotated[list[str], SET] = [],  # noqa: B006
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Ranks. Default: the job's.")] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Such as h100-80gb or cpu. Default: what the job's resources name.")
    ] = None,
    price: Annotated[float | None, typer.Option("--price", min=0, help="US dollars an hour of one device. Default: a list price.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what a job will need, without a cluster: memory by part for each ZeRO stage, micro-batch, time, energy, cost."""
    from raybm import plan as planning
    from raybm.core.errors import UserError
    from raybm.core.spec import load
    from raybm.core.storage import open_storage
    from raybm.spec import JobSpec

    job = load(JobSpec, spec, overrides)
    chosen = None
    if device is not None:
        if device not in planning.NAMES:
            raise UserError(f"{device} is not in the table.", where="--device", remedy=f"Take one of {', '.join(planning.NAMES)}.")
        ranks = workers or job.resources.workers
        chosen = planning.cpu(job.resources.cpus_per_worker, ranks) if device == "cpu" else planning.DEVICES[device]
    storage = open_storage(job.storage)
    made = planning.plan(job, storage, workers, chosen, price)
    if as_json:
        return say(json.dumps(made.json()))
    for line in planning.table(made, storage):
        say(line)
    return None


def register(app: typer.Typer) -> None:
    app.command()(plan)

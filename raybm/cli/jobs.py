"""raybm run, submit, init, schema, doctor, runs, status, logs, cancel, clean, predict."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from raybm.spec import JobSpec

STORAGE = typer.Option("--storage", help="Folder or s3://bucket/prefix.")
SET = typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a value of the spec; may be repeated.")
ADDRESS = typer.Option("--address", help="A running Ray cluster (host:port). Default: RAY_ADDRESS, else an embedded local Ray.")
DEFAULT_STORAGE = "~/.raybm"


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def show_table(table: Table) -> None:
    """Cells are shown as they are: an error's text may hold what looks like markup or an emoji code."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False, highlight=False).print(table)


def run(
    spec: Annotated[Path, typer.Argument(help="The job's YAML.")],
    overrides: Annotated[list[str], SET] = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    address: Annotated[str | None, ADDRESS] = None,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="Start Ray's dashboard too, where no cluster is joined.")] = False,
) -> None:
    """Run a job: prepare, train, evaluate, publish; what is done already is not done again."""
    from raybm.core.spec import load
    from raybm.spec import JobSpec

    job = load(JobSpec, spec, overrides)
    if dry_run:
        return _dry_run(job)
    from raybm.cli.driver import drive

    drive(job, address, dashboard)
    return None


def _dry_run(job: JobSpec) -> None:
    from raybm import plan, sweep
    from raybm.core.storage import open_storage
    from raybm.runner import settled, steps

    storage = open_storage(job.storage)
    job = settled(job, storage)
    if job.sweep is not None:
        sweep.check(job)
        say(f"sweep: {', '.join(job.sweep.space)}, by {job.sweep.sampler.kind}; what follows is the job without it")
    for step in steps(job, storage):
        say(f"{step.stage.NAME:10} {'done' if step.done else 'to do':6} {step.out.storage.uri}")
    for line in plan.lines(job):
        say(line)


def submit(
    spec: Annotated[Path, typer.Argument(help="The job's YAML, inside the working directory.")],
    overrides: Annotated[list[str], SET] = [],  # noqa: B006
    address: Annotated[
        str | None, typer.Option("--address", help="The dashboard's URL. Default: RAY_API_SERVER_ADDRESS, then http://127.0.0.1:8265.")
    ] = None,
    working_dir: Annotated[Path | None, typer.Option("--working-dir", help="What the cluster gets to see. Default: here.")] = None,
    follow: Annotated[bool, typer.Option(help="Show the log until the job ends.")] = True,
) -> None:
    """Send a job to a Ray cluster; the same command again follows the running job."""
    from raybm import cluster

    code = cluster.submit(spec, say=say, address=address, working_dir=working_dir, overrides=overrides, follow=follow)
    raise typer.Exit(code)


def init(
    data: Annotated[Path, typer.Argument(help="Your file: JSONL, CSV, TSV or text.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where to write the spec. Default: the terminal.")] = None,
) -> None:
    """Write a commented starting spec for your own file, after looking at it."""
    from raybm.core.errors import UserError
    from raybm.init import starting_spec

    text = starting_spec(data)
    if out is None:
        return say(text)
    if out.exists():
        raise UserError("exists already.", where=str(out), remedy="Give another --out.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}.", where=str(out), remedy="Give another --out.") from error
    say(f"Wrote {out}. Look it over, then: raybm run {out} --dry-run")
    return None


def schema(which: Annotated[Literal["job", "serve"], typer.Argument(help="job or serve")]) -> None:
    """Print the JSON Schema of a spec, for editors."""
    from raybm.core.specdoc import json_schema
    from raybm.spec import JobSpec, ServeConfig

    say(json.dumps(json_schema(JobSpec if which == "job" else ServeConfig), indent=2, ensure_ascii=False))


def doctor(storage: Annotated[str, STORAGE] = DEFAULT_STORAGE) -> None:
    """Look at this machine and say what is missing and what to do about it. Exit code 1 if anything must be mended."""
    from rich.table import Table
    from rich.text import Text

    from raybm.doctor import findings

    table = Table(box=None, show_header=False, pad_edge=False)
    found = findings(storage)
    for finding in found:
        mark = {True: Text("ok", "green"), False: Text("missing", "red"), None: Text("--", "dim")}[finding.ok]
        remedy = (f"\n→ {finding.remedy}", "bold") if finding.remedy else ""
        table.add_row(mark, finding.name, Text.assemble(finding.found, remedy))
    show_table(table)
    raise typer.Exit(1 if any(finding.ok is False for finding in found) else 0)


def runs(
    storage: Annotated[str, STORAGE] = DEFAULT_STORAGE,
    cluster: Annotated[bool, typer.Option("--cluster", help="The jobs that were submitted to a cluster instead.")] = False,
    address: Annotated[str | None, typer.Option("--address", help="The dashboard's URL, with --cluster.")] = None,
) -> None:
    """List the runs, the newest first."""
    import datetime

    from rich.table import Table

    from raybm.core.runs import states
    from raybm.core.storage import open_storage

    table = Table(box=None)
    if cluster:
        from raybm.cluster import jobs

        for column in ("job", "status", "command"):
            table.add_column(column, overflow="fold")
        for job in jobs(address):
            table.add_row(job.id, job.status, job.command)
    else:
        for column in ("run", "state", "stage", "started", "error"):
            table.add_column(column, overflow="fold")
        for state in states(open_storage(storage)):
            started = datetime.datetime.fromtimestamp(state.started).isoformat(" ", "seconds")
            table.add_row(state.run, state.shown, state.stage, started, state.error.splitlines()[0] if state.error else "")
    show_table(table)


def status(run: str, storage: Annotated[str, STORAGE] = DEFAULT_STORAGE) -> None:
    """Show one run as JSON: its state, stage, artifacts and, if it failed, why."""
    from raybm.core.runs import read_state
    from raybm.core.storage import open_storage

    state = read_state(open_storage(storage), run)
    say(json.dumps(state.canonical() | {"state": state.shown}, indent=2, ensure_ascii=False))


def logs(run: str, storage: Annotated[str, STORAGE] = DEFAULT_STORAGE) -> None:
    """Print a run's log."""
    from raybm.core.errors import NotFound
    from raybm.core.runs import read_state
    from raybm.core.storage import open_storage

    root = open_storage(storage)
    read_state(root, run)
    try:
        sys.stdout.write(root.read(f"runs/{run}/log.txt").decode())
    except NotFound:
        raise NotFound("has no log yet.", where=run, remedy="Runs on S3 bring theirs every few seconds.") from None


def cancel(
    run: str,
    storage: Annotated[str, STORAGE] = DEFAULT_STORAGE,
    address: Annotated[str | None, typer.Option("--address", help="The dashboard's URL, for a submitted job.")] = None,
) -> None:
    """Stop a run (or a submitted job); the same job again goes on from the last checkpoint."""
    from raybm import cluster
    from raybm.core import runs
    from raybm.core.errors import NotFound
    from raybm.core.storage import open_storage

    try:
        state = runs.cancel(open_storage(storage), run)
    except NotFound as unknown:
        try:
            stopped = cluster.cancel(run, address)
        except NotFound:
            raise unknown from None
        return say(f"{run}: {'asked to stop' if stopped else 'was not running'}")
    say(f"{run}: {'asked to stop' if state.shown == 'running' else f'was not running, but {state.shown}'}")
    return None


def clean(
    storage: Annotated[str, STORAGE] = DEFAULT_STORAGE,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only list.")] = False,
    keep_days: Annotated[float, typer.Option("--keep-days", min=0, help="Runs younger than this, and their artifacts, stay.")] = 7.0,
) -> None:
    """Free disk: partial and old artifacts, old runs, caches. Never what an alias, a running run or a live replica needs."""
    from raybm import cleaning
    from raybm.core.storage import open_storage

    root = open_storage(storage)
    found = cleaning.removable(root, keep_days=keep_days)
    for item in found:
        say(f"{item.bytes / 1e6:10.1f} MB  {item.path}  ({item.why})")
    if yes:
        cleaning.remove(root, found)
    total = sum(item.bytes for item in found) / 1e6
    say(f"{total:.1f} MB {'freed' if yes else 'can be freed; give --yes to delete'}")


def predict(
    model: Annotated[str, typer.Argument(help="registry:name@alias, file:path, package:name, ...; name@alias is short for registry:")],
    file: Annotated[str, typer.Argument(help="Rows: JSONL, CSV, TSV or text; a path, a glob or s3://...")],
    out: Annotated[Path | None, typer.Option("--out", help="Default: FILE.predictions.jsonl, for one local file.")] = None,
    columns: Annotated[
        list[str], typer.Option("--column", metavar="NAME=COLUMN", help="Standard name = the file's column, such as text=review.")
    ] = [],  # noqa: B006
    storage: Annotated[str, STORAGE] = DEFAULT_STORAGE,
    batch: Annotated[int, typer.Option("--batch", min=1)] = 64,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer, where the model generates.")] = 256,
    address: Annotated[str | None, ADDRESS] = None,
) -> None:
    """Run a model over a whole file with Ray Data."""
    from raybm.cluster import connect
    from raybm.core.errors import UserError
    from raybm.core.storage import open_storage
    from raybm.predict import predict as predict_rows

    mapping = dict(column.split("=", 1) for column in columns if "=" in column)
    if len(mapping) < len(columns):
        raise UserError("takes NAME=COLUMN.", where="--column", remedy="For example --column text=review.")
    if out is None and ("://" in file or set("*?[") & set(file)):
        raise UserError("is not one local file.", where=file, remedy="Say with --out where the predictions go.")
    target = out or Path(file + ".predictions.jsonl")
    ref = model if ":" in model else f"registry:{model}"
    with connect(cpus=2, say=say, address=address):
        rows = predict_rows(ref, file, target, open_storage(storage), batch=batch, columns=mapping, max_tokens=max_tokens)
    say(f"{rows} rows → {target}")


def register(app: typer.Typer) -> None:
    for command in (run, submit, init, schema, doctor, runs, status, logs, cancel, clean, predict):
        app.command()(command)

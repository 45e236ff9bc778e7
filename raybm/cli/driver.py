"""One run of a job in this process: its folder, its log, its signals, its Ray, and what a person sees."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from raybm import plan, report, runner, sweep
from raybm.cli.display import Display
from raybm.cluster import Ask, check_placement, connect, memory_of_a_worker, room, wait_for_place
from raybm.cluster.jobs import check_storage
from raybm.core.artifact import Record
from raybm.core.context import Context
from raybm.core.errors import Cancelled, RaybmError
from raybm.core.events import Events
from raybm.core.runs import Run
from raybm.core.storage import Storage, open_storage
from raybm.spec.job import JobSpec
from raybm.tracking import tracked

log = logging.getLogger("raybm")
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's, in the environment of a job that was sent to it
DATA_CPUS = 1.0  # beside the workers: Ray Data's tasks, and the evaluation's actor


def drive(job: JobSpec, address: str | None, dashboard: bool = False) -> dict[str, Record]:
    """Run the job to its end and leave the run's state, log and report behind. Raises what went wrong. `dashboard`: Ray's, where an
    embedded Ray is started."""
    if SUBMITTED in os.environ:
        check_storage(job.storage)
    root = open_storage(job.storage)
    job = runner.settled(job, root)
    if job.sweep is not None:
        sweep.check(job)
    run = Run(root, job.name, job.canonical(), on_cancel=lambda: os.kill(os.getpid(), signal.SIGTERM))
    records: dict[str, Record] = {}
    with _log_file(run), _terminated_as_interrupted(), Display(run.id) as display:

        def progress(text: str) -> None:
            log.info(text)
            display.line(text)

        try:
            progress(f"run {run.id}, files in {run.storage.uri}")
            with tracked(job.tracking, run.id, job.canonical(), run.folder) as listeners:
                events = Events(run.folder, [display.event, *listeners])
                context = Context(job.canonical(), job.name, root, job.resources, run.folder, events, progress)
                with _on_ray_once(job, address, dashboard, progress) as on_ray:
                    if job.sweep is not None:
                        job = sweep.run(job, run, context, on_ray, partial(room, _ask(job)))
                        context = replace(context, job=job.canonical())
                    records = runner.run(job, run, context, on_ray)
        except BaseException as error:
            _failed(run, job, root, error, progress)
            raise
        try:
            _report(run, job, root, progress)
        finally:
            run.close(state="succeeded")
    return records


@contextmanager
def _on_ray_once(job: JobSpec, address: str | None, dashboard: bool, progress: Any) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Gives what joins or starts Ray when it is first called, and leaves it when the block ends."""
    with ExitStack() as held:
        joined: list[None] = []

        @contextmanager
        def on_ray() -> Iterator[None]:
            if not joined:
                joined.append(held.enter_context(_on_ray(job, address, dashboard, progress)))
            try:
                yield
            except BaseException as error:  # its workers may still write what the caller holds a lease of
                held.__exit__(type(error), error, error.__traceback__)  # with the error, for which an embedded Ray keeps its logs
                raise

        yield on_ray


@contextmanager
def _on_ray(job: JobSpec, address: str | None, dashboard: bool, progress: Any) -> Iterator[None]:
    """A Ray that can hold the job; refused at once where it never can."""
    resources, ask = job.resources, _ask(job)
    each, trials = resources.workers * resources.cpus_per_worker, 1
    if job.sweep is not None:
        dashboard = True  # whose API Ray Train asks before it frees what a stopped trial held
        trials = job.sweep.concurrent or max(1, int((os.cpu_count() or 1) // each))
    with connect(
        cpus=trials * each + DATA_CPUS,
        gpus=resources.workers * resources.gpus_per_worker,
        address=address,
        say=progress,
        dashboard=dashboard,
    ) as connection:
        if connection.dashboard_url:
            progress(f"Ray's dashboard: {connection.dashboard_url}")
        check_placement(ask)
        storage = open_storage(job.storage)
        plan.refuse(plan.resolve_auto(job, storage), storage, memory_of_a_worker(ask))
        if not connection.embedded:
            wait_for_place(ask, resources.placement_timeout_s, progress)
        yield


def _ask(job: JobSpec) -> Ask:
    resources = job.resources
    return Ask(resources.workers, resources.cpus_per_worker, resources.gpus_per_worker, resources.accelerator_type, DATA_CPUS)


@contextmanager
def _log_file(run: Run) -> Iterator[None]:
    handler = logging.FileHandler(run.folder / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {run.id} %(name)s: %(message)s"))
    logger = logging.getLogger("raybm")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate = before[1]
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM (`raybm cancel`, a job that is stopped) ends the run as Ctrl-C does: cleanly."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _failed(run: Run, job: JobSpec, root: Storage, error: BaseException, progress: Callable[[str], None]) -> None:
    """The run's state, the cause in its log, and the report of what was done (a refused gate is looked at there)."""
    interrupted = isinstance(error, KeyboardInterrupt | Cancelled)
    try:
        if interrupted:
            progress("stopped; the same command goes on from what is done")
        elif not isinstance(error, RaybmError):
            log.error("unexpected error\n%s", "".join(traceback.format_exception(error)))
        elif error.__cause__ is not None:
            log.error("%s\n%s", error, "".join(traceback.format_exception(error.__cause__)))
        if run.state.artifacts and not interrupted:
            _report(run, job, root, progress)
    finally:
        try:
            run.close(
                state="cancelled" if interrupted else "failed", error="stopped" if interrupted else str(error) or type(error).__name__
            )
        except RaybmError as second:
            print(f"raybm: the run's state could not be written: {second}", file=sys.stderr)  # noqa: T201


def _report(run: Run, job: JobSpec, root: Storage, progress: Callable[[str], None]) -> None:
    try:
        progress(f"report: {report.write(run.folder, job.canonical(), report.finished(root, run.state.artifacts))}")
    except Exception as error:  # an edge: what the run did stands, with or without its page
        log.warning("no report", exc_info=error)
        progress(f"the report could not be written: {error}")

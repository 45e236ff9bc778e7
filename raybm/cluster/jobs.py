"""Send a job to a cluster: `raybm run` on its head, through Ray's job API.

The submission's id is the job's name and the digest of its spec, so giving the same command again adopts the job that runs,
and starts another (…-2) only when the earlier one has ended.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raybm.cluster.environment import environment, token_of
from raybm.core import spec as specs
from raybm.core.errors import DeadlineExceeded, NotFound, RaybmError, UserError
from raybm.spec import JobSpec

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
EXCLUDES = ["/.venv", ".git", "**/__pycache__", "/build", "/dist"]  # beside what .gitignore names
SECRETS = [".env*", "*.pem", ".ssh", ".aws", ".netrc", "**/token"]
RUNNING = ("PENDING", "RUNNING")
STOPPED_EXIT_CODE = 130
REQUEST_TIMEOUT_S = 120.0
TAIL_TIMEOUT_S = 300.0
"""After so long the log's connection is opened anew, in case it died without a word."""
RECONNECT_TIMEOUT_S = 180.0
"""How long the head may be away (restarting, a cut network) before following its logs is given up."""


@dataclass(frozen=True)
class Job:
    """A job on the cluster, as Ray's job API knows it."""

    id: str
    status: str
    """PENDING | RUNNING | STOPPED | SUCCEEDED | FAILED"""
    command: str
    started: float | None
    """Unix time in seconds."""


def submit(
    spec_path: Path,
    *,
    say: Callable[[str], None],
    address: str | None = None,
    working_dir: Path | None = None,
    overrides: Sequence[str] = (),
    follow: bool = True,
    show: Callable[[str], object] | None = None,
    command: Sequence[str] = ("raybm", "run"),
) -> int:
    """Run the job of `spec_path` on the cluster whose dashboard is at `address` (default: RAY_API_SERVER_ADDRESS,
    then http://127.0.0.1:8265). `working_dir` (default: here) is what the cluster gets to see, less what .gitignore names and
    what usually holds secrets. `show` takes the log as it comes.

    Returns the job's own exit code, or 0 at once where `follow` is false. Raises SpecError, UserError (a refused token, a spec
    outside of the working directory), NotFound (no cluster there, or it has forgotten the job), DeadlineExceeded (the cluster went
    away), RaybmError (it does not take the job).
    """
    folder = (working_dir or Path.cwd()).resolve()
    if working_dir is None and Path.home().resolve().is_relative_to(folder):
        raise UserError(f"{folder} holds more than a job's files.", where="working directory", remedy="Give --working-dir.")
    spec = specs.load(JobSpec, spec_path, overrides)
    check_storage(spec.storage)
    try:
        inside = spec_path.resolve().relative_to(folder)
    except ValueError:
        raise UserError(f"lies outside of {folder}.", where=str(spec_path), remedy="Give --working-dir a folder that holds it.") from None
    entrypoint = shlex.join([*command, inside.as_posix(), *(part for override in overrides for part in ("--set", override))])
    digest = hashlib.sha256(json.dumps([spec.canonical(), entrypoint], sort_keys=True).encode()).hexdigest()
    with _cluster(address) as cluster:
        id = _start(cluster, f"{spec.name}-{digest[:10]}", entrypoint, folder, say)
        if not follow:
            say(f"Follow it with the same command, stop it with `raybm cancel {id}`.")
            return 0
        try:
            return _follow(cluster, id, show or _to_terminal)
        except KeyboardInterrupt:
            say(f"The job goes on. Follow it with the same command, stop it with `raybm cancel {id}`.")
            raise


def check_storage(storage: str) -> None:
    """Of a submitted job, which works in a folder of Ray's own that goes with the cluster. Raises UserError."""
    if "://" not in storage and not storage.startswith(("/", "~")):
        what = f"{storage} would lie in the folder that Ray unpacks the job into, and be lost with it."
        raise UserError(what, where="storage", remedy="Give an absolute path, ~/..., or s3://bucket/prefix.")


def jobs(address: str | None = None) -> list[Job]:
    """The submitted jobs that the cluster remembers, the newest first. Raises as `submit`."""
    with _cluster(address) as cluster:
        found = [
            Job(id, str(job.status.value), job.entrypoint, job.start_time / 1000 if job.start_time else None)
            for id, job in cluster.jobs().items()
        ]
    return sorted(found, key=lambda job: -(job.started or 0.0))


def cancel(id: str, address: str | None = None) -> bool:
    """Ask a job to stop; Ray kills it when it does not. False: it was not running any more. Raises as `submit`."""
    with _cluster(address) as cluster:
        if id not in cluster.jobs():
            raise NotFound("the cluster knows no such job.", where=id, remedy="`raybm runs --cluster` lists them.")
        return cluster.stop(id)


class _NoAnswer(NotFound):
    """Nobody answers there, or not as Ray's job API does."""


class _Cluster:
    """Ray's job API. What its client raises, of many kinds, is an error of ours: UserError (the token) or _NoAnswer."""

    def __init__(self, address: str) -> None:
        self.address = address
        with self._answers():
            self.client = _client(address)

    def jobs(self) -> dict[str, Any]:
        """The submitted jobs (ray.job_submission.JobDetails) by their id."""
        with self._answers():
            return {job.submission_id: job for job in self.client.list_jobs() if job.submission_id}

    def start(self, id: str, entrypoint: str, folder: Path) -> bool:
        """False: the id is taken. Raises RaybmError when Ray refuses the job, or the folder, which is sent along."""
        from ray.exceptions import RuntimeEnvSetupError

        environment = {"working_dir": str(folder), "excludes": EXCLUDES + SECRETS}
        with self._answers():
            try:
                self.client.submit_job(entrypoint=entrypoint, submission_id=id, runtime_env=environment)
            except (RuntimeError, ValueError, RuntimeEnvSetupError) as error:
                if "already exists" in str(error):
                    return False
                raise RaybmError(f"the cluster did not take the job: {error}", where=id, remedy="See the head's dashboard.log.") from error
        return True

    def stop(self, id: str) -> bool:
        with self._answers():
            return bool(self.client.stop_job(id))

    def log(self, id: str) -> str:
        with self._answers():
            return str(self.client.get_job_logs(id))

    async def tail(self, id: str) -> AsyncIterator[str]:
        """The log from its beginning, as it grows."""
        chunks = self.client.tail_job_logs(id)
        while True:
            with self._answers():
                chunk = await anext(chunks, None)
            if chunk is None:
                return
            yield chunk

    @contextmanager
    def _answers(self) -> Iterator[None]:
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            remedy = "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file with its token (`cluster/local.sh status` prints both)."
            raise UserError("the cluster refuses the token.", where=self.address, remedy=remedy) from error
        except (OSError, requests.RequestException, aiohttp.ClientError, RuntimeError, ValueError, LookupError, TypeError) as error:
            reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
            remedy = "Start one with `cluster/local.sh start`, or give --address."
            raise _NoAnswer(f"no Ray cluster answers ({reason}).", where=self.address, remedy=remedy) from error


def _start(cluster: _Cluster, stem: str, entrypoint: str, folder: Path, say: Callable[[str], None]) -> str:
    for _ in range(3):  # somebody else may take the id between our look and our request
        known = {id: str(job.status.value) for id, job in cluster.jobs().items()}
        number = 1
        while (id := stem if number == 1 else f"{stem}-{number}") in known and known[id] not in RUNNING:
            number += 1
        if id in known:
            say(f"Job {id} is already {known[id].lower()}: nothing new is started.")
            return id
        say(f"Sending {folder} to the cluster as job {id}.")
        if cluster.start(id, entrypoint, folder):
            return id
    raise RaybmError("others submit the same job over and over.", where=stem, remedy="Try again.")


def _follow(cluster: _Cluster, id: str, show: Callable[[str], object]) -> int:
    """Show the log until the job ends. A cut connection is taken up again where it broke off."""
    shown = 0

    async def tail() -> None:
        nonlocal shown
        skip = shown
        async for chunk in cluster.tail(id):
            if skip < len(chunk):
                show(chunk[skip:])
            shown += max(0, len(chunk) - skip)
            skip = max(0, skip - len(chunk))

    lost: float | None = None
    while True:
        try:
            job = cluster.jobs().get(id)
            if job is None:
                what = "the cluster knows this job no more: its head was started anew, or the job was deleted."
                raise NotFound(what, where=id, remedy="The same command sends it again, and it goes on from its last checkpoint.")
            if job.status.is_terminal():
                show(cluster.log(id)[shown:])
                return _exit_code(str(job.status.value), job.driver_exit_code)
            lost = None
            with suppress(TimeoutError):
                asyncio.run(asyncio.wait_for(tail(), TAIL_TIMEOUT_S))
        except _NoAnswer as error:
            now = time.monotonic()
            lost = lost or now
            if now - lost > RECONNECT_TIMEOUT_S:
                what = f"the cluster has not answered for {RECONNECT_TIMEOUT_S:g} s ({type(error.__cause__).__name__})."
                raise DeadlineExceeded(what, where=id, remedy="The same command follows the job again.") from error
        time.sleep(0.5)


def _exit_code(status: str, driver_exit_code: int | None) -> int:
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return STOPPED_EXIT_CODE
    code = driver_exit_code or 1
    return code if code > 0 else 128 - code  # killed by a signal: as a shell says it


@contextmanager
def _cluster(address: str | None) -> Iterator[_Cluster]:
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    host = urlsplit(address).hostname
    if urlsplit(address).scheme not in ("http", "https") or not host:
        raise UserError(f"{address!r} is not the URL of a dashboard.", where="address", remedy=f"Such as {DEFAULT_ADDRESS}.")
    with environment(token_of(host) | {"RAY_API_SERVER_ADDRESS": address}):  # Ray's client heeds the variable more than its argument
        yield _Cluster(address)


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, *args: Any, **kwargs: Any) -> Any:  # Ray's own waits without end
            return super()._do_request(*args, timeout=REQUEST_TIMEOUT_S, **kwargs)

    for name in ("_private.runtime_env.packaging", "dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)  # they tell of every upload
    return Client(address)


def _to_terminal(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

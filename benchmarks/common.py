"""What the benchmarks share: the `raybm` command as a user types it, and the JSON object at the end."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
JOBS = ROOT / "jobs"
RAYBM = [sys.executable, "-m", "raybm.cli"]
RUN_TIMEOUT_S = 1800.0
STOP_TIMEOUT_S = 60.0


def fail(text: str) -> NoReturn:
    """One line and exit code 2: the benchmark says nothing where it cannot measure."""
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr)
    raise SystemExit(2)


def require_data(job: Path) -> None:
    """Ends the benchmark where a file that the job reads is not there."""
    import yaml

    for source in yaml.safe_load(job.read_text())["data"]["sources"]:
        path = str(source["path"])
        if ":" not in path and not Path(path).expanduser().exists():
            fail(f"{path} is missing; `make setup` (or `python jobs/get_data.py`) brings it.")


def environment(**variables: str) -> dict[str, str]:
    """This process's environment, offline, without a cluster that a user may be on."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    return kept | {"HF_HUB_OFFLINE": "1"} | variables


def run(command: Sequence[str | Path], timeout_s: float = RUN_TIMEOUT_S, expect: int = 0, **variables: str) -> str:
    """Its standard output. Raises RuntimeError, with the end of what it said, where its exit code is not `expect`."""
    with started(command, **variables) as process:
        out, err = process.communicate(timeout=timeout_s)
    if process.returncode != expect:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with code {process.returncode}:\n{out[-2000:]}\n{err[-4000:]}")
    return out


@contextmanager
def started(command: Sequence[str | Path], **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is stopped as Ctrl-C stops it, at the latest when the block ends."""
    process = subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, env=environment(**variables), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def run_job(job: Path, storage: Path, settings: Mapping[str, Any]) -> Path:
    """`raybm run JOB --set storage=... --set ...`; the folder of the run. None in `settings` takes a section away."""
    before = set((storage / "runs").glob("*"))
    given = {"storage": storage} | dict(settings)
    flags = [part for name, value in given.items() for part in ("--set", f"{name}={'null' if value is None else value}")]
    run([*RAYBM, "run", job, *flags])
    (folder,) = set((storage / "runs").glob("*")) - before
    return folder


def artifact(run_folder: Path, stage: str) -> Path:
    """The folder of a stage's output."""
    key = json.loads((run_folder / "state.json").read_text())["artifacts"][stage]
    return run_folder.parent.parent / "artifacts" / stage / key


def say(text: str) -> None:
    """Progress, on standard error: standard output ends with the result."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3), "n": len(values)}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return round(statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True)), 3)


def load() -> dict[str, Any]:
    """Load averages over 1, 5 and 15 minutes, and cores: what else the machine did meanwhile."""
    return {"average": [round(value, 1) for value in os.getloadavg()], "cores": os.cpu_count()}


def report(numbers: Mapping[str, float], cases: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    print(json.dumps({**numbers, "cases": cases, "load": {"before": before, "after": load()}}), flush=True)

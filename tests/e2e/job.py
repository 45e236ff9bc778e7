"""A job of seconds on generated text, for whole runs: a Llama of some thousand parameters, two ZeRO workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from raybm.core.artifact import Artifact
from raybm.core.events import by_step, read_events
from raybm.core.runs import states
from raybm.core.storage import Storage

DEADLINE_S = 240.0
WORDS = ("red", "green", "blue", "small", "large", "old", "new", "cat", "dog", "bird", "house", "river")


def write_spec(folder: Path, storage: str, **changes: Any) -> Path:
    """The job's YAML and its data in `folder`."""
    lines = [" ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(3, 12)) for i in range(200)]
    (folder / "text.txt").write_text("\n".join(f"{i} {line}" for i, line in enumerate(lines)), encoding="utf-8")
    spec: dict[str, Any] = {
        "name": "tiny",
        "storage": storage,
        "task": {"kind": "causal_lm"},
        "model": {
            "ref": "scratch:llama",
            "max_length": 32,
            "config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
            "tokenizer": {"train": "char"},
        },
        "data": {"sources": [{"kind": "text", "path": str(folder / "text.txt"), "unit": "line"}]},
        "train": {"max_steps": 8, "global_batch": 8, "lr": 1e-3, "log_every_steps": 1, "zero": {"stage": 2}},
        "publish": {"alias": "prod"},
    }
    for section, values in changes.items():
        spec[section] = {**spec.get(section, {}), **values} if isinstance(values, dict) else values
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return path


@contextmanager
def start(spec: Path, variables: Mapping[str, str] = {}) -> Iterator[subprocess.Popen[str]]:
    """`raybm run` in a process of its own, with an embedded Ray of its own. What still runs at the end is killed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "raybm.cli", "run", str(spec)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**environment, **variables}
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                for member in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
                    with suppress(psutil.NoSuchProcess):
                        member.kill()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and what it printed."""
    output, _ = process.communicate(timeout=DEADLINE_S)
    return process.returncode, output


def losses(storage: Storage, run: int = 0) -> dict[int, float]:
    """Step → training loss of the newest run (or the one `run` places before it)."""
    name = states(storage)[run].run
    local = storage.local(f"runs/{name}/metrics.jsonl")
    assert local is not None
    return {event["step"]: event["loss"] for event in by_step(read_events(local), "train")}


def artifacts(storage: Storage, run: int = 0) -> dict[str, str]:
    return states(storage)[run].artifacts


def train_metrics(storage: Storage, run: int = 0) -> dict[str, Any]:
    key = artifacts(storage, run)["train"]
    record = Artifact(storage.at(f"artifacts/train/{key}"), "train", key).record()
    assert record is not None
    return record.metrics


def evaluation(storage: Storage, run: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(storage.read(f"artifacts/evaluate/{artifacts(storage, run)['evaluate']}/evaluation.json"))
    return found

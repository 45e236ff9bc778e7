"""Sharded checkpoints. Every rank writes its own shards into a folder that no other attempt uses; then all wait for each
other; then rank 0 writes the marker. A folder without a marker does not exist for anybody.

    checkpoints/step-00000120-1f3a/…      what the ranks wrote
    checkpoints/committed/00000120.json   the marker: folder, step, world size, validation scores

The marker lies in the job's storage, not in Ray's manifest: a killed worker and a killed driver resume by the same code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock
from safetensors.torch import load_file, save_file

from raybm.core.cache import cache_folder
from raybm.core.errors import NotFound
from raybm.core.spec import Spec
from raybm.core.storage import Storage, files_under
from raybm.training.average import Average

FOLDER = "checkpoints"
MARKERS = f"{FOLDER}/committed"
TAG = "state"
LOCK_TIMEOUT_S = 1800.0
QUANTISED = ("Params4bit", "Int8Params")  # weights of bitsandbytes
AVERAGE = "average-{rank}.safetensors"  # of replicas rank 0's alone


class Commit(Spec):
    """A marker's content."""

    folder: str
    step: int
    """Optimiser steps done."""
    world_size: int
    validation: dict[str, float] | None = None
    progress: dict[str, Any] = {}
    """What the loop carries from step to step (best score, patience, tokens)."""


def commits(storage: Storage) -> list[Commit]:
    """All committed checkpoints, oldest first."""
    found = []
    for key in storage.keys(MARKERS):
        with suppress(NotFound):  # the one who trains takes old ones away
            found.append(Commit.parse(json.loads(storage.read(key))))
    return found


def agreed(storage: Storage) -> list[Commit]:
    """`commits` as rank 0 sees them: on a file system of the network a rank may see an older state. Collective."""
    found: list[Any] = [commits(storage) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    every: list[Commit] = found[0]
    return every


def forget(storage: Storage) -> None:
    """Begin anew. Collective."""
    dist.barrier()  # all have seen what there is
    if dist.get_rank() == 0:
        storage.delete(MARKERS)
        sweep(storage)
    dist.barrier()


def save(
    engine: Any,
    storage: Storage,
    step: int,
    validation: dict[str, float] | None,
    progress: dict[str, Any],
    best_by: str,
    average: Average | None = None,
    stays: int | None = None,
) -> None:
    """Collective. Keeps this checkpoint, the best one by the validation value `best_by` ("loss" falls, others rise), and that of the step
    that `stays`, which others may branch off."""
    attempt: list[Any] = [uuid.uuid4().hex[:6]]
    dist.broadcast_object_list(attempt)
    folder = f"{FOLDER}/step-{step:08d}-{attempt[0]}"
    with _uploaded(storage, folder) as target:
        engine.save_checkpoint(str(target), tag=TAG, save_latest=False)
        if average is not None and dist.get_rank() == _averager(engine):
            save_file(average.means, target / AVERAGE.format(rank=dist.get_rank()))
    dist.barrier()
    if dist.get_rank() == 0:
        if (shared := storage.local(folder)) is not None:
            _sync(shared)  # what the marker stands for outlives a power failure as it does
        commit = Commit(folder=folder, step=step, world_size=dist.get_world_size(), validation=validation, progress=progress)
        storage.write(f"{MARKERS}/{step:08d}.json", json.dumps(commit.canonical()).encode())
        _prune(storage, best_by, stays)
    dist.barrier()


def _prune(storage: Storage, best_by: str, stays: int | None) -> None:
    every = commits(storage)
    kept = {every[-1].step, stays}
    if best_commit := best(every, best_by):
        kept.add(best_commit.step)
    for commit in every:  # and nothing else: an uncommitted folder may be what a run that took over is writing now
        if commit.step not in kept:
            storage.delete(f"{MARKERS}/{commit.step:08d}.json")
            storage.delete(commit.folder)


def sweep(storage: Storage) -> None:
    """Delete the folders that no marker names: what broken attempts left. For when no rank writes any more."""
    committed = {commit.folder for commit in commits(storage)}
    for name in storage.folders(FOLDER):
        if name.startswith("step-") and f"{FOLDER}/{name}" not in committed:
            storage.delete(f"{FOLDER}/{name}")


def best(every: list[Commit], by: str) -> Commit | None:
    """The committed checkpoint with the best validation value; None where none was validated."""
    scored = [commit for commit in every if commit.validation]
    sign = 1 if by == "loss" else -1
    return min(scored, key=lambda commit: sign * (commit.validation or {})[by], default=None)


def load(engine: Any, storage: Storage, commit: Commit, average: Average | None = None) -> None:
    """Collective. Puts weights, optimiser state and counters back."""
    with _downloaded(storage, commit.folder) as source:
        engine.load_checkpoint(str(source), tag=TAG, custom_load_fn=_load_weights)
        if average is not None:
            average.load(load_file(source / AVERAGE.format(rank=_averager(engine))))


def _load_weights(src: Mapping[str, Any], dst: torch.nn.Module) -> None:
    """As DeepSpeed calls it. Quantised weights stay as the model's files had them: bitsandbytes does not take back what it gives."""
    parameters = dst.named_parameters(remove_duplicate=False)
    quantised = tuple(name.removesuffix("weight") for name, parameter in parameters if type(parameter).__name__ in QUANTISED)
    missing, unexpected = dst.load_state_dict({name: value for name, value in src.items() if not name.startswith(quantised)}, strict=False)
    lost = [name for name in missing if not name.startswith(quantised)]
    if lost or unexpected:
        raise RuntimeError(f"the checkpoint is of another model: {', '.join([*lost, *unexpected][:3])}")


def _averager(engine: Any) -> int:
    """The rank whose file holds this one's average: stage 3 shards it, elsewhere all have the whole."""
    return dist.get_rank() if engine.zero_optimization_stage() == 3 else 0


def _sync(folder: Path) -> None:
    """Files and folders onto this machine's disk."""
    files = [folder / name for name in files_under(folder)]
    for path in [*files, *{file.parent for file in files}, folder.parent]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def branch(source: Storage, target: Storage, step: int) -> None:
    """Begin one training with the checkpoint of another: every rank's shards are copied, and then count as the new one's own. Nothing where
    it has checkpoints already, or the other has none of that step."""
    found = next((commit for commit in commits(source) if commit.step == step), None)
    if found is None or commits(target):
        return
    with tempfile.TemporaryDirectory(prefix="raybm-branch-") as temporary:
        folder = source.local(found.folder) or Path(temporary)
        if source.local(found.folder) is None:
            source.download(found.folder, folder)
        target.upload(folder, found.folder)
    target.write(f"{MARKERS}/{step:08d}.json", json.dumps(found.canonical()).encode())


@contextmanager
def _uploaded(storage: Storage, folder: str) -> Iterator[Path]:
    """Where a rank writes: the folder itself, or one of its own that is then uploaded."""
    if (shared := storage.local(folder)) is not None:
        shared.mkdir(parents=True, exist_ok=True)
        yield shared
        return
    near = cache_folder("checkpoints")
    near.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=near) as target:
        yield Path(target)
        storage.upload(Path(target), folder)


@contextmanager
def _downloaded(storage: Storage, folder: str) -> Iterator[Path]:
    """Collective. The folder itself, or a copy that the ranks of a node share and that goes once all have read it."""
    if (shared := storage.local(folder)) is not None:
        yield shared
        return
    copy = cache_folder("checkpoints") / hashlib.sha256(f"{storage.uri}/{folder}".encode()).hexdigest()[:16]
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{copy}.lock", timeout=LOCK_TIMEOUT_S):
            if not copy.exists():
                with tempfile.TemporaryDirectory(dir=copy.parent) as partial:  # a killed download leaves no copy
                    storage.download(folder, Path(partial) / "whole")
                    (Path(partial) / "whole").rename(copy)
        yield copy
        dist.barrier()
    finally:
        gone = copy.with_suffix(".gone")
        with FileLock(f"{copy}.lock", timeout=LOCK_TIMEOUT_S):
            shutil.rmtree(gone, ignore_errors=True)  # of a rank that was killed here
            with suppress(FileNotFoundError):  # another rank was first
                copy.rename(gone)  # at once: a copy that is there is whole
            shutil.rmtree(gone, ignore_errors=True)

"""Training races: `raybm run` and bare loops of benchmarks/peers/ around the same model, rows and order, timed by windows of steps.

Like runs against like: raybm's replicas (ZeRO stage 0) against peers that have DistributedDataParallel, its stage 2 against DeepSpeed's.
A round runs every contender once, in turning order; a contender's time is the sum over the windows of the median over the
rounds, without the first window, so that what else the machine did in one window does not count.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common

from raybm import ops
from raybm.core.artifact import Artifact
from raybm.core.events import by_step, read_events
from raybm.core.spec import load
from raybm.core.storage import open_storage
from raybm.spec import JobSpec
from raybm.training.batches import Schedule, open_rows
from raybm.training.zero import deepspeed_config

WINDOW = 10  # steps; the default of train.log_every_steps
SETTINGS = {"evaluate": None, "publish": None, "data.split.validation": 0, "train.log_every_steps": WINDOW}
OURS = {"raybm": 0, "raybm_zero2": 2}  # ZeRO stages


@dataclass(frozen=True)
class Peer:
    script: str
    against: str
    """Which of OURS."""
    environment: Mapping[str, str] = field(default_factory=dict)


LOOPS = {"ddp_loop": Peer("ddp.py", "raybm"), "deepspeed_loop": Peer("deepspeed_loop.py", "raybm_zero2")}
APART = {  # where a difference comes from: with the same memory, and raybm's loop without Ray
    "deepspeed_loop_memory": dataclasses.replace(LOOPS["deepspeed_loop"], environment=ops.KEEPS_MEMORY),
    "raybm_loop": Peer("raybm_loop.py", "raybm_zero2", ops.KEEPS_MEMORY),
}
TRAINER = {"hf_trainer": Peer("trainer.py", "raybm")}
CASES = {"encoder": ("sentiment_minilm", 40), "llama": ("pretrain_tiny", 200)}
"""Jobs of jobs/, and steps that take some half a minute."""


def measure(path: Path, place: Path, rounds: int, steps: int, peers: Mapping[str, Peer]) -> dict[str, Any]:
    """One case: rounds of raybm and the peers. `vs_…` are ratios of tokens/s; `best_vs_…` takes each window's shortest time instead
    of its median, for a machine that others use."""
    settings = {name: SETTINGS | {"train.zero.stage": stage, "train.max_steps": steps} for name, stage in OURS.items()}
    done = common.run_job(path, place / "raybm", settings["raybm_zero2"])  # what the peers start from; not timed
    case = peer_case(path, settings["raybm_zero2"], done)
    (place / "case.json").write_text(json.dumps(case))
    windows: dict[str, list[list[float]]] = {name: [] for name in (*OURS, *peers)}
    losses: dict[str, list[float]] = {}
    for number in range(rounds):
        order = list(windows)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            if name in OURS:
                shutil.rmtree(place / "raybm" / "artifacts" / "train")
                events = by_step(read_events(common.run_job(path, place / "raybm", settings[name]) / "metrics.jsonl"), "train")
                seconds, losses[name] = [event["seconds"] for event in events], [event["loss"] for event in events]
            else:
                answer = bare(peers[name].script, place / "case.json", **peers[name].environment)
                seconds, losses[name] = answer["windows"], answer["losses"]
            windows[name].append(seconds[1:])
            common.say(f"{path.stem} round {number + 1} {name}: {tokens_per_s(case, [seconds[1:]]):.0f} tokens/s")
    speeds = {name: tokens_per_s(case, timed) for name, timed in windows.items()}
    each = {name: common.spread([tokens_per_s(case, [one]) for one in timed]) for name, timed in windows.items()}
    best = {name: tokens_per_s(case, timed, min) for name, timed in windows.items()}
    ratios = {f"vs_{name}": round(speeds[peer.against] / speeds[name], 4) for name, peer in peers.items()}
    ratios |= {f"best_vs_{name}": round(best[peer.against] / best[name], 4) for name, peer in peers.items()}
    return ratios | {"tokens_per_s": {name: round(speed, 1) for name, speed in speeds.items()}, "rounds": each, "losses": losses}


def peer_case(path: Path, settings: dict[str, Any], done: Path) -> dict[str, Any]:
    """What a bare loop needs to know: raybm's model, its rows and how they are dealt, as plain files and numbers."""
    from safetensors.torch import load_file

    job = load(JobSpec, path, [f"{name}={'null' if value is None else value}" for name, value in settings.items()])
    prepared, trained, workers, train = common.artifact(done, "prepare"), common.artifact(done, "train"), job.resources.workers, job.train
    model = done.parent.parent / "model"
    shutil.copytree(trained / "model", model)
    rows = open_rows(Artifact(open_storage(str(prepared)), "prepare", prepared.name), "train")
    order = dealt(Schedule.of(train, rows, workers, job.seed), train.max_steps or 0)
    config = json.loads((model / "config.json").read_text())
    trainable = sum(weight.numel() for weight in load_file(model / "model.safetensors").values())
    return {
        "class": config["architectures"][0],
        "model": str(model),
        "rows": str(prepared / "encoded" / "train"),
        "place": str(model.parent),
        "prepared": str(prepared),
        "dataset": json.loads((prepared / "record.json").read_text())["metrics"],
        "view": json.loads((trained / "record.json").read_text())["view"],
        "order": order,
        "steps": len(order),
        "tokens": [int(sum(rows.lengths[row] for mine in step for row in mine)) for step in order],
        "pad": config.get("pad_token_id") or 0,
        "one_label": job.task.kind == "text_classification",
        "workers": workers,
        "window": WINDOW,
        "lr": train.lr,
        "betas": train.betas,
        "weight_decay": train.weight_decay,
        "clip_norm": train.clip_norm,
        "deepspeed": deepspeed_config(train, workers, "cpu", trainable)
        | {"train_batch_size": train.global_batch, "train_micro_batch_size_per_gpu": train.global_batch // workers},
    }


def dealt(schedule: Schedule, steps: int) -> list[list[list[int]]]:
    """Row numbers by step and rank, as raybm's ranks take them: all peers get them so. Ends the benchmark where a step is not one pass of
    each rank."""
    passes = [[schedule.step(step, rank) for rank in range(schedule.workers)] for step in range(steps)]
    if any(len(mine) != 1 or not mine[0] for step in passes for mine in step):
        common.fail("a rank has several passes of a step, or no row; the peers have one pass.")
    return [[list(mine[0]) for mine in step] for step in passes]


def bare(script: str, case: Path, **variables: str) -> dict[str, Any]:
    """A peer under torchrun, in raybm's own Python environment, with the op that was compiled ahead but not raybm's other settings."""
    workers = json.loads(case.read_text())["workers"]
    given = {name: value for name, value in ops.environment().items() if name not in ops.KEEPS_MEMORY}
    given |= {"OMP_NUM_THREADS": "1"} | variables
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", f"--nproc-per-node={workers}"]
    out = common.run([*torchrun, common.ROOT / "benchmarks" / "peers" / script, case], **given)
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer


def tokens_per_s(
    case: dict[str, Any], rounds: Sequence[Sequence[float]], pick: Callable[[Sequence[float]], float] = statistics.median
) -> float:
    """Of the counted windows: the tokens, padding apart, by the sum of each window's median seconds over the rounds."""
    tokens: int = sum(case["tokens"][WINDOW:])
    return tokens / sum(pick(window) for window in zip(*rounds, strict=True))

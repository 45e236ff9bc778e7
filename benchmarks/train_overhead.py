"""What raybm's training costs over a bare loop: tokens/s of `raybm run` ÷ tokens/s of the peers in benchmarks/peers/.

The peers are some 30 lines each around the same model, rows, order, AdamW, clipping and precision, two processes of one thread
each, started by torchrun: DistributedDataParallel, beside raybm's ZeRO stage 0, and DeepSpeed with the very config that raybm gives
it, beside stage 2. All are timed by windows of 10 steps without the first window, without validation and checkpoints. A round
runs all, in turning order; a contender's time is the sum over the windows of the median over the rounds, so that what else the
machine did in one window does not count; `best_vs_…` under `cases` takes each window's shortest time instead of its median, for a
machine that others use. Two more stand under `cases` and say where a difference comes from: `…_memory` is the DeepSpeed loop with
what raybm asks of the allocator, `vs_raybm_loop` the share that Ray takes, raybm's own loop under torchrun being the peer.

Prints {"vs_ddp_loop", "vs_deepspeed_loop"}: the worse of the cases, an encoder (MiniLM on film reviews) and a small Llama from
scratch; 1 is no cost, more is faster than the peer.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import common
from race import APART, CASES, LOOPS, WINDOW, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help=f"Of each run, the first {WINDOW} of which are not counted. Default: {CASES}.")
    parser.add_argument("--case", choices=CASES, action="append", help="Only this one.")
    given = parser.parse_args()
    names = given.case or list(CASES)
    if given.steps and (given.steps % WINDOW or given.steps < 2 * WINDOW):
        parser.error(f"--steps: a multiple of {WINDOW}, two windows or more")
    for name in names:
        common.require_data(common.JOBS / f"{CASES[name][0]}.yaml")
    before = common.load()
    with tempfile.TemporaryDirectory(prefix="raybm-benchmark-") as folder:
        cases = {
            name: measure(common.JOBS / f"{job}.yaml", Path(folder) / name, given.rounds, given.steps or steps, LOOPS | APART)
            for name, (job, steps) in CASES.items()
            if name in names
        }
    common.report({f"vs_{peer}": min(case[f"vs_{peer}"] for case in cases.values()) for peer in LOOPS}, cases, before)


if __name__ == "__main__":
    main()

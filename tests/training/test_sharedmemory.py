"""Summing gradients through shared memory, on two real ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from raybm import ops
from raybm.training import sharedmemory
from tests.ranks import Ranks

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def fresh() -> Iterator[Ranks]:
    """Ranks that DeepSpeed was never started on."""
    ranks = Ranks()
    yield ranks
    ranks.close()


def mean_of_ranks(numbers: int) -> tuple[float, float, list[str]]:
    """What the hook makes of a bucket that holds the rank's number; and the segments that are left."""
    import torch
    import torch.distributed as dist

    hook = sharedmemory.summing_hook()
    assert hook is not None

    class Bucket:
        def buffer(self) -> torch.Tensor:
            return torch.full((numbers,), float(dist.get_rank() + 1))

    made: Any = hook(None, Bucket()).wait()
    port = os.environ["MASTER_PORT"]
    return float(made.min()), float(made.max()), [path.name for path in sharedmemory.SEGMENTS.glob(f"*_{port}_*")]


def without_room() -> bool:
    kept, sharedmemory.SEGMENT_BYTES = sharedmemory.SEGMENT_BYTES, 1 << 60
    try:
        return sharedmemory.summing_hook() is None
    finally:
        sharedmemory.SEGMENT_BYTES = kept


@pytest.mark.skipif(not ops.is_built(), reason="DeepSpeed's op is not compiled: python -m raybm.ops")
@pytest.mark.parametrize("numbers", [3, 1000, 20_000_000])
def test_both_ranks_get_the_mean_and_leave_no_segment(fresh: Ranks, numbers: int) -> None:
    assert fresh.run(mean_of_ranks, numbers) == [(1.5, 1.5, []), (1.5, 1.5, [])]


def test_without_room_gloo_goes_on(fresh: Ranks) -> None:
    assert fresh.run(without_room) == [True, True]


def beside_deepspeed() -> bool:
    import deepspeed

    deepspeed.init_distributed()
    return sharedmemory.summing_hook() is None


def test_where_deepspeed_runs_gloo_goes_on(ranks: Ranks) -> None:
    assert ranks.run(beside_deepspeed) == [True, True]

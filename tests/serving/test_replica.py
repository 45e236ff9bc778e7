"""What requests that meet in one batch know of each other: nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import torch

from raybm.core.errors import EngineDied, UserError
from raybm.serving.app import _options, _place
from raybm.serving.replica import _all, _each
from raybm.spec.serve import GatewaySpec, ServedModel


def compute(rows: Sequence[str]) -> list[str]:
    for number, row in enumerate(rows):
        if row == "bad":
            raise UserError(f"row {number} is bad.", where="text")
        if row == "odd":
            raise RuntimeError("a shape that the model has not seen")
        if row == "end":
            raise EngineDied("it broke down.")
    return [row.upper() for row in rows]


async def answered(results: Sequence[str | Exception]) -> list[str]:
    async def one(result: str | Exception) -> str | Exception:
        return result

    return await _all(one(result) for result in results)


def test_an_input_that_cannot_be_is_its_own_requests_error() -> None:
    first, bad, odd, last = _each(compute, ["one", "bad", "odd", "two"])
    assert (first, last) == ("ONE", "TWO") and isinstance(bad, UserError) and isinstance(odd, RuntimeError)
    assert asyncio.run(answered([first, last])) == ["ONE", "TWO"]
    with pytest.raises(UserError, match="text: input 1: row 0 is bad"):
        asyncio.run(answered([first, bad]))
    with pytest.raises(UserError, match="text: row 0 is bad"):
        asyncio.run(answered([bad]))
    with pytest.raises(RuntimeError):
        asyncio.run(answered([odd, last]))


def test_a_dead_engine_is_not_asked_row_by_row() -> None:
    with pytest.raises(EngineDied):
        _each(compute, ["one", "end"])


def test_a_gpu_that_failed_ends_its_replica() -> None:
    """Whatever is asked of it from then on would fail, each time at once."""

    def failed(rows: Sequence[str]) -> list[str]:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    with pytest.raises(EngineDied, match="device-side assert"):
        _each(failed, ["one", "two"])


@pytest.mark.parametrize(("gpus", "hidden"), [(0, True), (0.5, False)])
def test_a_replica_without_gpus_sees_none(gpus: float, hidden: bool) -> None:
    model = ServedModel.parse({"name": "m", "ref": "file:/m", "gpus": gpus})
    variables = _options(model, _place(model, GatewaySpec()))["ray_actor_options"].get("runtime_env", {}).get("env_vars", {})
    assert (variables.get("CUDA_VISIBLE_DEVICES") == "") is hidden

from __future__ import annotations

from typing import Any

import pytest

from raybm.models.shapes import Shape
from raybm.plan import cost
from raybm.plan.devices import DEVICES, by_accelerator, cpu
from raybm.plan.memory import Setup

MILLION = Shape(1_000_000, width=100, layers=10)


def test_flops_a_token() -> None:
    """PaLM, appendix B: 6N + 12·L·H·Q·T; 8N where layers are computed again; no gradients of frozen weights."""
    attention = 12 * 10 * 100 * 50
    assert cost.flops_per_token(MILLION, 50) == 6e6 + attention
    assert cost.flops_per_token(MILLION, 50, checkpointing=True) == 8e6 + attention * 4 / 3
    assert cost.flops_per_token(Shape(1_000_000, frozen=1_000_000), 50) == 4e6


def test_flops_a_token_of_a_reference() -> None:
    """A forward pass alone, 2N beside the 6N of what learns; it is not computed again."""
    attention, both = 12 * 10 * 100 * 50, Shape(2_000_000, width=100, layers=10, frozen=1_000_000)
    assert cost.flops_per_token(both, 50, idle=1_000_000) == 8e6 + attention * 4 / 3
    assert cost.flops_per_token(both, 50, checkpointing=True, idle=1_000_000) == 10e6 + attention * 5 / 3


@pytest.mark.parametrize(("stage", "numbers"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_communication_of_a_step(stage: Any, numbers: int) -> None:
    assert cost.communication(MILLION, Setup(ranks=8, stage=stage, each=2)) == numbers * 2e6
    assert cost.communication(MILLION, Setup(ranks=1, stage=stage)) == 0


@pytest.mark.parametrize(("stage", "numbers"), [(1, 2), (2, 5), (3, 12)])
def test_micro_batches_repeat_what_their_stage_asks_for(stage: Any, numbers: int) -> None:
    assert cost.communication(MILLION, Setup(ranks=8, stage=stage, accumulation=4)) == numbers * 4e6


def test_time_energy_and_money() -> None:
    h100 = DEVICES["h100-80gb"]
    times = cost.seconds(h100.bf16 * h100.utilisation / 2, h100.bandwidth / 2, MILLION, Setup(ranks=8, stage=1, each=2), h100)
    assert times.compute == pytest.approx(1.0)
    assert times.exposed == 0, "hidden behind the backward pass"
    assert cost.energy_kwh(times, 3600, 8, h100) == pytest.approx(8 * 0.7)
    assert cost.cost_usd(times, 3600, 8, 2.0) == pytest.approx(16 * times.step)
    assert cost.cost_usd(times, 3600, 8, None) is None


def test_many_ranks_talk_over_the_network() -> None:
    a100, much = DEVICES["a100-40gb"], Shape(10**9)
    near, far = (cost.seconds(1.0, 0.0, much, Setup(ranks=ranks, stage=1, each=2), a100).communication for ranks in (8, 16))
    assert far / near > 0.9 * a100.link / a100.network


def test_a_cpu_waits_for_its_messages() -> None:
    times = cost.seconds(1e9, 0.0, MILLION, Setup(ranks=2, stage=1), cpu())
    assert times.exposed == times.communication > 0


def test_the_table() -> None:
    assert {"h100-80gb", "h200", "a100-40gb", "a100-80gb", "l4", "l40s", "a10g", "t4", "v100", "rtx4090", "mi300x"} == set(DEVICES)
    for device in DEVICES.values():
        assert device.bf16 > device.fp32 > 1e12 and device.memory >= 16 * 2**30 and device.source and device.price
    assert by_accelerator("A100") is DEVICES["a100-40gb"] and by_accelerator("H100") is DEVICES["h100-80gb"]
    assert by_accelerator("TPU-V4") is None and by_accelerator(None) is None

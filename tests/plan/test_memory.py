from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from raybm.core.storage import open_storage
from raybm.models.shapes import Shape, shape
from raybm.models.spec import ModelSpec
from raybm.plan.memory import Offload, Setup, activations_by_formula, deepspeed_estimate, memory
from tests.plan.jobs import T5_3B

MILLION = Shape(1_000_000)


@pytest.mark.parametrize(("stage", "backward", "held"), [(0, 16, 16), (1, 14, 12), (2, 12, 12), (3, 10, 10)])
def test_bytes_a_parameter_in_fp32_on_two_ranks(stage: Any, backward: int, held: int) -> None:
    """ZeRO §5 with 4-byte weights and gradients, at the end of the backward pass and after DeepSpeed has reduced the gradients."""
    made = memory(MILLION, Setup(ranks=2, stage=stage))
    assert (made.weights + made.gradients + made.optimizer) / 1e6 == backward
    assert made.held / 1e6 == held


def test_mixed_precision_takes_the_sixteen_bytes_of_the_zero_paper() -> None:
    made = memory(MILLION, Setup(ranks=1, stage=1, each=2))
    assert made.weights + made.gradients + made.optimizer == 16_000_000
    made = memory(Shape(7_500_000_000), Setup(ranks=64, stage=3, each=2))
    assert round((made.weights + made.gradients + made.optimizer) / 1e9, 1) == 1.9, "figure 1 of the paper"


def test_the_update_can_need_more_than_the_backward_pass() -> None:
    made = memory(MILLION, Setup(ranks=4, stage=2, each=2), activations=100)
    assert made.total == 2e6 + (2 + 12 + 4) * 1e6 / 4


def test_stage_3_holds_small_tensors_whole_and_gathers_what_it_uses_again() -> None:
    made = memory(Shape(1_000_000, small=100_000), Setup(ranks=4, stage=3, bucket=50_000))
    assert made.weights == 4 * (250_000 + 100_000)
    assert made.buffers == 4 * (50_000 + 900_000)
    assert made.held == made.weights + 12 * 250_000 + 4 * 250_000 + 4 * 50_000


def test_buffers_are_no_larger_than_what_is_trained() -> None:
    small = memory(Shape(1_000_000, frozen=990_000), Setup(ranks=4, stage=2, bucket=50_000))
    assert small.buffers == 4 * 10_000


def test_offloading_moves_the_states_to_the_host() -> None:
    made = memory(Shape(1_000_000, largest=1000), Setup(ranks=2, stage=2, each=2, offload="optimizer"))
    assert (made.weights, made.gradients, made.optimizer, made.update) == (2_000_000, 2000, 0, 0)
    assert made.host == (12 + 2 + 4 + 2) * 500_000
    made = memory(Shape(1_000_000, largest=1000), Setup(ranks=2, stage=3, each=2, offload="all"))
    assert made.held == 0


def test_only_what_learns_has_gradients_and_states() -> None:
    made = memory(Shape(1_000_000, frozen=990_000), Setup(ranks=1, stage=1, each=2))
    assert (made.weights, made.gradients, made.optimizer) == (2_000_000, 20_000, 120_000)


def test_activations_by_formula() -> None:
    known = Shape(1000, width=8, layers=2, vocabulary=30)
    assert activations_by_formula(known, 100, 2, logits=False) == 100 * 8 * 2 * 34
    assert activations_by_formula(known, 100, 4, logits=True) == 100 * 8 * 2 * 34 * 2 + 100 * 30 * 8
    assert activations_by_formula(known, 100, 2, logits=False, checkpointing=True) == 100 * 8 * (2 * 2 + 34)
    assert activations_by_formula(Shape(1000), 100, 2, logits=False) is None


def t5_3b(folder: Path) -> Shape:
    model = ModelSpec.parse({"ref": "scratch:t5", "config": T5_3B, "tokenizer": {"train": "unigram", "vocab_size": 32128}})
    found = shape(model, open_storage(str(folder)))
    assert found is not None
    return found


CASES: list[tuple[Literal[2, 3], Offload, float]] = [(2, "none", 11.29), (2, "optimizer", 5.31), (3, "none", 6.10), (3, "optimizer", 0.79)]


def test_t5_3b_on_8_gpus(tmp_path: Path) -> None:
    """As deepspeed 0.19.8 answers, GiB a GPU."""
    found = t5_3b(tmp_path)
    for stage, offload, gib in CASES:
        assert deepspeed_estimate(found, 8, stage, offload) / 2**30 == pytest.approx(gib, rel=0.02)


@pytest.mark.integration
def test_deepspeed_itself_says_so(tmp_path: Path) -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    found = t5_3b(tmp_path)
    for stage, offload, gib in [*CASES, (3, "all", 0.12)]:
        if stage == 2:
            _, gpu = estimate_zero2_model_states_mem_needs(found.parameters, 8, 1, cpu_offload=offload != "none")
        else:
            _, gpu, _ = estimate_zero3_model_states_mem_needs(
                found.parameters, found.largest, 8, 1, cpu_offload=offload != "none", cpu_offload_params=offload == "all"
            )
        assert gpu / 2**30 == pytest.approx(gib, abs=0.01)
        assert deepspeed_estimate(found, 8, stage, offload) == pytest.approx(gpu, abs=2)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybm import plan, runner
from raybm.core.errors import NotFound, PlacementError, UserError
from raybm.core.storage import open_storage
from raybm.models.shapes import Shape
from raybm.plan import choice
from raybm.plan.choice import Row
from raybm.plan.devices import DEVICES, cpu
from raybm.plan.fitting import allowed, misfit, refuse, resolve_auto
from raybm.plan.job import check_names, device_of, packed, setup_of
from raybm.plan.memory import Setup, memory
from raybm.spec.train import TrainSpec, ZeroSpec
from raybm.training.batches import Schedule
from tests.engines import tiny
from tests.plan.jobs import job, language_model, write_model

H100 = DEVICES["h100-80gb"]
SEVEN_BILLION = Shape(7_000_000_000, largest=200_000_000, width=4096, layers=32)
ROW = Row(2048, activations=10 * 10**9, fixed=0, flops=1e14)
MB = 10**6


def test_the_lowest_stage_that_fits_with_the_largest_micro_batch() -> None:
    """7B in bf16 on 8 of 80 GB: 16 bytes a parameter are 112 GB, stage 1 leaves 28 + 10.5 for the model."""
    made = choice.options(SEVEN_BILLION, ROW, Setup(ranks=8, stage=0, each=2), 16, H100, choice.usable(H100))
    assert [option.fits for option in made] == [False, True, True, True, True, True, True, True]
    best = choice.recommended(made, choice.LADDER[1:])
    assert best is not None and (best.stage, best.micro_batch, best.accumulation) == (1, 2, 8)
    assert made[2].micro_batch == 4, "stage 2 has room for more"


def test_micro_batches_divide_a_ranks_share() -> None:
    found = choice.largest(Shape(1000), Row(8, activations=10, fixed=5, flops=1.0), Setup(ranks=1, stage=0), 12, H100, 16_000 + 5 + 50)
    assert found.micro_batch == 4 and found.accumulation == 3


@pytest.mark.parametrize(("share", "rows", "passes"), [(12, 4, 3), (12, 5, 3), (3, 2, 2), (1, 1, 1), (7, 4, 2)])
def test_the_last_pass_may_be_a_smaller_one(share: int, rows: int, passes: int) -> None:
    """As many as the loop makes."""
    row = Row(8, activations=10, fixed=5, flops=1.0)
    made = choice.option(Shape(1000), row, Setup(ranks=3, stage=2), rows, share, H100, 10**9)
    schedule = Schedule(np.full(3 * share, 8), 3 * share, 3, seed=0, micro_batch=rows)
    assert [made.accumulation] * 3 == [len(schedule.step(0, rank)) for rank in range(3)] == [passes] * 3


def test_a_misfit_says_what_would_fit() -> None:
    room = choice.usable(H100)
    found = misfit(SEVEN_BILLION, ROW, Setup(ranks=8, stage=0, each=2), 1, 16, H100, room, choice.LADDER[1:])
    assert found is not None and "This fits: train.zero.stage 1, micro_batch 2" in str(found) and "has 77.3 GB" in str(found)
    found = misfit(SEVEN_BILLION, ROW, Setup(ranks=8, stage=2, each=2), 16, 16, H100, room, choice.LADDER)
    assert found is not None and "This fits: train.zero.stage 2, micro_batch 4" in str(found)
    assert misfit(SEVEN_BILLION, ROW, Setup(ranks=8, stage=2, each=2), 1, 16, H100, room, choice.LADDER) is None
    alone = Setup(ranks=1, stage=0, each=4)
    found = misfit(Shape(10**11), ROW, alone, 1, 1, cpu(), room, choice.LADDER)
    assert found is not None and "ZeRO stage 3 on 32 workers, each with as much memory, would fit" in str(found)
    found = misfit(Shape(10**6), ROW, alone, 1, 1, cpu(), choice.usable(cpu(), 300_000_000), choice.LADDER)
    assert found is not None and "a rank has 300 MB, and its process alone takes" in str(found) and "fewer workers" in str(found)


def test_a_job_that_cannot_fit_is_refused(tmp_path: Path) -> None:
    spec, storage = language_model(tmp_path, train={"zero": {"stage": 0}}), open_storage(str(tmp_path))
    refuse(spec, storage, 10**10)
    refuse(spec, storage, None)
    with pytest.raises(PlacementError) as refused:
        refuse(spec, storage, 704 * MB)  # 4 MB beside the process
    assert "states 2" in str(refused.value) and refused.value.exit_code == 4


def test_padded_rows_are_refused_only_if_one_does_not_fit(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    spec = job(tmp_path, train={"global_batch": 10_000_000})
    refuse(spec, open_storage(str(tmp_path)), 800 * MB)


def test_auto_takes_what_fits(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    spec = language_model(tmp_path, train={"zero": {"stage": "auto"}, "global_batch": 64})
    roomy = resolve_auto(spec, storage, 10**10)
    assert (roomy.train.zero.stage, roomy.train.micro_batch) == (0, 32)
    tight = resolve_auto(spec, storage, 706 * MB)
    assert tight.train.micro_batch is not None and tight.train.micro_batch < 32
    assert resolve_auto(roomy, storage) is roomy
    with pytest.raises(PlacementError):
        resolve_auto(spec, storage, 701 * MB)


def test_auto_keeps_what_the_job_says(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    given = language_model(tmp_path, train={"zero": {"stage": "auto"}, "global_batch": 64, "micro_batch": 8, "precision": "bf16"})
    settled = resolve_auto(given, storage, 10**10)
    assert (settled.train.zero.stage, settled.train.micro_batch) == (1, 8), "16 bit wants ZeRO's fp32 copy"
    assert settled.model_copy(update={"train": given.train}) == given


def test_auto_keeps_the_specs_rules(tmp_path: Path) -> None:
    gpu = {"gpus_per_worker": 1, "accelerator_type": "H100"}
    auto = {"zero": {"stage": "auto", "quantized_weights": True}, "precision": "bf16"}
    storage = open_storage(str(tmp_path))
    assert resolve_auto(language_model(tmp_path, train=auto, resources=gpu), storage).train.zero.stage == 3
    muon = language_model(tmp_path, train={"optimizer": "muon", "zero": {"stage": 0}})
    assert allowed(muon, cpu()) == [(0, "none")]
    assert allowed(muon.model_copy(update={"train": auto_adamw()}), H100) == [*choice.LADDER]
    found = misfit(SEVEN_BILLION, ROW, Setup(ranks=8, stage=0), 1, 16, H100, choice.usable(H100), [(0, "none")])
    assert found is not None and "This fits" not in str(found)


def auto_adamw() -> TrainSpec:
    return TrainSpec.parse({"zero": {"stage": "auto"}})


def test_16_bit_that_a_gpu_lacks_is_refused(tmp_path: Path) -> None:
    spec = language_model(tmp_path, train={"precision": "bf16"}, resources={"gpus_per_worker": 1, "accelerator_type": "T4"})
    storage = open_storage(str(tmp_path))
    asks: tuple[Callable[[], object], ...] = (
        lambda: refuse(spec, storage, None),
        lambda: plan.plan(spec, storage),
        lambda: resolve_auto(spec.model_copy(update={"train": spec.train.model_copy(update={"zero": ZeroSpec(stage="auto")})}), storage),
    )
    for ask in asks:
        with pytest.raises(PlacementError, match="t4 has no bf16"):
            ask()


def test_a_secondary_partition_is_counted(tmp_path: Path) -> None:
    zero = {"stage": 3, "secondary_partition": 2}
    spec = language_model(tmp_path, train={"zero": zero}, resources={"gpus_per_worker": 1, "accelerator_type": "H100", "workers": 4})
    setup = setup_of(spec, 4, True)
    shape = Shape(1_000_000)
    assert memory(shape, setup).weights == memory(shape, replace(setup, secondary=None)).weights + 500_000 * setup.each


def test_half_a_gpu_has_half_its_memory(tmp_path: Path) -> None:
    half = language_model(tmp_path, resources={"gpus_per_worker": 0.5, "accelerator_type": "H100"})
    assert device_of(half).memory == H100.memory // 2


@pytest.mark.parametrize(
    ("task", "source", "filled"),
    [
        ({"kind": "causal_lm"}, {"kind": "text", "path": "a"}, True),
        ({"kind": "causal_lm"}, {"kind": "conversations", "path": "a"}, False),
        ({"kind": "causal_lm", "packing": True}, {"kind": "conversations", "path": "a"}, True),
        ({"kind": "causal_lm"}, {"kind": "jsonl", "path": "a", "columns": {"prompt": "q", "completion": "a"}}, False),
        ({"kind": "causal_lm"}, {"kind": "jsonl", "path": "a"}, None),
        ({"kind": "masked_lm"}, {"kind": "text", "path": "a"}, False),
    ],
)
def test_which_sequences_are_filled(tmp_path: Path, task: dict[str, Any], source: dict[str, Any], filled: bool | None) -> None:
    assert packed(language_model(tmp_path, task=task, data={"sources": [source]})) is filled


def test_what_a_model_lacks_is_told_before_it_runs(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    check_names(language_model(tmp_path, train={"gradient_checkpointing": True}), storage)
    frozen = language_model(tmp_path)
    frozen = frozen.model_copy(update={"model": frozen.model.model_copy(update={"freeze": ("*.wte.*",)})})
    with pytest.raises(UserError, match=r"no parameter is called \*\.wte\.\*"):
        check_names(frozen, storage)
    pretrained = {"ref": f"file:{tiny.language_model(tmp_path / 'lm')}", "lora": {"targets": ["qkv"]}, "max_length": 16}
    with pytest.raises(UserError, match=r"no layer is called qkv.*down_proj"):
        check_names(language_model(tmp_path, model=pretrained), storage)
    recurrent = {"ref": "scratch:raybm_rnn", "max_length": 16, "tokenizer": {"train": "bpe", "vocab_size": 100}}
    with pytest.raises(UserError, match="cannot compute its layers again"):
        check_names(job(tmp_path, model=recurrent, train={"gradient_checkpointing": True}), storage)


def test_what_auto_chose_is_what_is_hashed(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    chosen = runner.settled(language_model(tmp_path, train={"zero": {"stage": "auto"}}), storage)
    assert chosen.train.zero.stage in (0, 1, 2, 3) and chosen.train.micro_batch
    written = {"zero": {"stage": chosen.train.zero.stage}, "micro_batch": chosen.train.micro_batch}
    same = runner.settled(language_model(tmp_path, train=written), storage)
    assert [step.out.key for step in runner.steps(chosen, storage)] == [step.out.key for step in runner.steps(same, storage)]


def test_auto_needs_a_device_and_a_model(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    with pytest.raises(UserError, match="accelerator_type"):
        resolve_auto(language_model(tmp_path, train={"zero": {"stage": "auto"}}, resources={"gpus_per_worker": 1}), storage)
    with pytest.raises(NotFound):
        resolve_auto(job(tmp_path, train={"zero": {"stage": "auto"}}), storage)

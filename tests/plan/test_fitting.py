from __future__ import annotations

from pathlib import Path

import pytest

from raybm.core.errors import NotFound, PlacementError, UserError
from raybm.core.storage import open_storage
from raybm.models.shapes import Shape
from raybm.plan import choice
from raybm.plan.choice import Row
from raybm.plan.devices import DEVICES, cpu
from raybm.plan.fitting import misfit, refuse, resolve_auto
from raybm.plan.memory import Setup
from tests.plan.jobs import job, language_model, write_model

H100 = DEVICES["h100-80gb"]
SEVEN_BILLION = Shape(7_000_000_000, largest=200_000_000, width=4096, layers=32)
ROW = Row(2048, activations=10 * 10**9, fixed=0, flops=1e14)
MB = 10**6


def test_the_lowest_stage_that_fits_with_the_largest_micro_batch() -> None:
    """7B in bf16 on 8 of 80 GB: 16 bytes a parameter are 112 GB, stage 1 leaves 28 + 10.5 for the model."""
    made = choice.options(SEVEN_BILLION, ROW, Setup(ranks=8, stage=0, each=2), 16, H100, choice.usable(H100))
    assert [option.fits for option in made] == [False, True, True, True, True, True, True, True]
    best = choice.recommended(made, each=2)
    assert best is not None and (best.stage, best.micro_batch, best.accumulation) == (1, 2, 8)
    assert made[2].micro_batch == 4, "stage 2 has room for more"


def test_micro_batches_divide_a_ranks_share() -> None:
    found = choice.largest(Shape(1000), Row(8, activations=10, fixed=5, flops=1.0), Setup(ranks=1, stage=0), 12, H100, 16_000 + 5 + 50)
    assert found.micro_batch == 4 and found.accumulation == 3


def test_a_misfit_says_what_would_fit() -> None:
    room = choice.usable(H100)
    found = misfit(SEVEN_BILLION, ROW, Setup(ranks=8, stage=0, each=2), 1, 16, H100, room)
    assert found is not None and "This fits: train.zero.stage 1, micro_batch 2" in str(found) and "has 77.3 GB" in str(found)
    found = misfit(SEVEN_BILLION, ROW, Setup(ranks=8, stage=2, each=2), 16, 16, H100, room)
    assert found is not None and "This fits: train.zero.stage 2, micro_batch 4" in str(found)
    assert misfit(SEVEN_BILLION, ROW, Setup(ranks=8, stage=2, each=2), 1, 16, H100, room) is None
    alone = Setup(ranks=1, stage=0, each=4)
    found = misfit(Shape(10**11), ROW, alone, 1, 1, cpu(), room)
    assert found is not None and "ZeRO stage 3 on 32 workers, each with as much memory, would fit" in str(found)


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


def test_auto_needs_a_device_and_a_model(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    with pytest.raises(UserError, match="accelerator_type"):
        resolve_auto(language_model(tmp_path, train={"zero": {"stage": "auto"}}, resources={"gpus_per_worker": 1}), storage)
    with pytest.raises(NotFound):
        resolve_auto(job(tmp_path, train={"zero": {"stage": "auto"}}), storage)

"""The training loop on two real ranks (gloo, DeepSpeed), without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raybm.core.storage import open_storage
from raybm.training import checkpoint, loop
from raybm.training.profile import PROFILED
from tests.ranks import Ranks
from tests.training import jobs

pytestmark = pytest.mark.integration
SPEC = {"epochs": 2, "global_batch": 16, "micro_batch": 4, "lr": 2e-3, "warmup": 0.0, "log_every_steps": 1, "clip_norm": 0.5}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_losses_agree_with_plain_ddp(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    prepare = jobs.prepared(tmp_path / "prepared")
    expected = ranks.run(jobs.plain_ddp, prepare, SPEC)[0]
    losses, summary = ranks.run(jobs.train, prepare, str(tmp_path / "out"), SPEC | {"zero": {"stage": stage}})[0]
    assert len(losses) == summary["steps"] == 10  # 70 rows: 5 steps an epoch, the last one of 6 rows
    assert losses == pytest.approx(expected, abs=1e-4)


def test_resumes_from_the_last_commit_with_the_same_losses(ranks: Ranks, tmp_path: Path) -> None:
    prepare = jobs.prepared(tmp_path / "prepared")
    whole, summary = ranks.run(jobs.train, prepare, str(tmp_path / "whole"), SPEC | {"zero": {"stage": 2}})[0]
    broken = SPEC | {"zero": {"stage": 2}, "checkpoint": {"every_steps": 4}}
    ranks.run(jobs.train, prepare, str(tmp_path / "out"), broken)
    storage = open_storage(str(tmp_path / "out"))
    assert len(storage.folders(checkpoint.FOLDER)) == 1 + len(checkpoint.commits(storage))  # what is kept, and the markers' folder
    for commit in checkpoint.commits(storage)[1:]:
        storage.delete(f"{checkpoint.MARKERS}/{commit.step:08d}.json")  # as if killed before the marker: the folder alone is nothing
    left = checkpoint.commits(storage)[-1].step
    again, resumed = ranks.run(jobs.train, prepare, str(tmp_path / "out"), broken)[0]
    assert again == pytest.approx(whole[left:], abs=1e-6)
    assert resumed["train_loss"] == pytest.approx(summary["train_loss"], abs=1e-6)
    assert resumed["tokens"] == summary["tokens"]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_branch_goes_on_as_if_it_had_trained_alone(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    prepare, spec = jobs.prepared(tmp_path / "prepared"), SPEC | {"zero": {"stage": stage}, "validate_every_steps": 3}
    phases = [{"after": 3, "lr": 1e-2, "weight_decay": 0.5}, {"after": 6, "lr": 1e-4}]
    whole, summary = ranks.run(jobs.train, prepare, str(tmp_path / "whole"), spec | {"phases": phases})[0]
    first = ranks.run(jobs.paused, prepare, str(tmp_path / "1"), spec, 1)[0]
    assert first["paused"] and first["steps"] == 3
    checkpoint.branch(open_storage(str(tmp_path / "1")), open_storage(str(tmp_path / "2")), 3)
    second = ranks.run(jobs.paused, prepare, str(tmp_path / "2"), spec | {"phases": phases[:1]}, 2)[0]
    assert second["steps"] == 6 and ranks.run(jobs.paused, prepare, str(tmp_path / "2"), spec | {"phases": phases[:1]}, 2)[0] == second
    checkpoint.branch(open_storage(str(tmp_path / "2")), open_storage(str(tmp_path / "3")), 6)
    losses, branched = ranks.run(jobs.train, prepare, str(tmp_path / "3"), spec | {"phases": phases})[0]
    assert losses == pytest.approx(whole[6:], abs=1e-6) and branched["validation"] == pytest.approx(summary["validation"], abs=1e-6)
    plain, _ = ranks.run(jobs.train, prepare, str(tmp_path / "plain"), spec)[0]
    assert plain[:4] == pytest.approx(whole[:4], abs=1e-6) and plain[4] != pytest.approx(whole[4], abs=1e-4)


def test_what_was_trained_past_a_pause_goes_on_to_its_next_validation(ranks: Ranks, tmp_path: Path) -> None:
    prepare = jobs.prepared(tmp_path / "prepared")
    spec = SPEC | {"zero": {"stage": 0}, "validate_every_steps": 3}
    third = ranks.run(jobs.paused, prepare, str(tmp_path / "3"), spec, 3)[0]
    ranks.run(jobs.paused, prepare, str(tmp_path / "out"), spec | {"validate_every_steps": 4}, 2)
    storage, marker = open_storage(str(tmp_path / "out")), f"{checkpoint.MARKERS}/{8:08d}.json"
    storage.write(marker, json.dumps(json.loads(storage.read(marker)) | {"validation": None}).encode())  # as every_steps leaves one
    first = ranks.run(jobs.paused, prepare, str(tmp_path / "out"), spec, 1)[0]
    assert (first["paused"], first["steps"]) == (True, 9) and first["validation"] == pytest.approx(third["validation"], abs=1e-6)
    assert ranks.run(jobs.paused, prepare, str(tmp_path / "out"), spec, 2)[0] == first


def test_how_rows_are_dealt_changes_no_loss(ranks: Ranks, tmp_path: Path) -> None:
    prepare = jobs.prepared(tmp_path / "prepared")
    expected = ranks.run(jobs.plain_ddp, prepare, SPEC)[0]
    by_tokens = {name: value for name, value in SPEC.items() if name != "micro_batch"} | {"micro_tokens": 24}
    for stage in (0, 2, 3):
        losses, _ = ranks.run(jobs.train, prepare, str(tmp_path / f"tokens-{stage}"), by_tokens | {"zero": {"stage": stage}})[0]
        assert losses == pytest.approx(expected, abs=1e-4)


def test_three_ranks_and_an_uneven_last_batch(tmp_path: Path, ranks: Ranks) -> None:
    prepare = jobs.prepared(tmp_path / "prepared", rows=19)
    spec = SPEC | {"global_batch": 6, "micro_batch": 2, "zero": {"stage": 2}, "validate_every_steps": 100}
    two, _ = ranks.run(jobs.train, prepare, str(tmp_path / "two"), spec | {"micro_batch": 3})[0]
    three = Ranks(3)
    try:
        losses, summary = three.run(jobs.train, prepare, str(tmp_path / "three"), spec)[0]
    finally:
        three.close()
    assert summary["steps"] == 8  # the fourth of an epoch has one row
    assert losses == pytest.approx(two, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ({"optimizer": "lion", "lr": 1e-3}, 2),
        ({"optimizer": "sgd", "lr": 0.1}, 1),
        ({"optimizer": "muon", "lr": 5e-3}, 0),
        ({"optimizer": "adafactor", "lr": 5e-2}, 0),
        ({"layer_lr_decay": 0.7, "schedule": "wsd", "gradient_checkpointing": True}, 3),
        ({"l1": 1e-6, "schedule": "inverse_sqrt", "warmup": 0.1}, 2),
        ({"precision": "bf16"}, 2),
    ],
)
def test_learns(ranks: Ranks, tmp_path: Path, change: dict[str, Any], stage: int) -> None:
    prepare = jobs.prepared(tmp_path / "prepared")
    losses, summary = ranks.run(jobs.train, prepare, str(tmp_path / "out"), SPEC | {"epochs": 8, "zero": {"stage": stage}} | change)[0]
    assert sum(losses[-10:]) < 0.98 * sum(losses[:10])
    assert summary["tokens"] > 0


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_average_is_what_is_validated_and_survives_a_restart(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    prepare = jobs.prepared(tmp_path / "prepared")
    spec = SPEC | {"ema": 0.9, "zero": {"stage": stage}, "checkpoint": {"every_steps": 4}}
    plain, averaged = (
        ranks.run(jobs.weights, prepare, str(tmp_path / name), spec | change)[0]
        for name, change in (("plain", {"ema": None}), ("mean", {}))
    )
    assert 0 < abs(plain["validation"]["loss"] - averaged["validation"]["loss"]) < 0.3
    storage = open_storage(str(tmp_path / "mean"))
    written = [key for key in storage.keys(checkpoint.commits(storage)[-1].folder) if "average" in key]
    assert len(written) == (2 if stage == 3 else 1), "shards, or the same everywhere"
    storage.delete(f"{checkpoint.MARKERS}/{checkpoint.commits(storage)[-1].step:08d}.json")
    again = ranks.run(jobs.weights, prepare, str(tmp_path / "mean"), spec)[0]
    assert again["sum"] == pytest.approx(averaged["sum"], abs=1e-5)
    assert again["sum"] != pytest.approx(plain["sum"], abs=1e-5)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_what_was_good(ranks: Ranks, tmp_path: Path) -> None:
    prepare = jobs.prepared(tmp_path / "prepared")
    said = ranks.run(
        jobs.failure, prepare, str(tmp_path / "out"), SPEC | {"lr": 1e30, "clip_norm": None, "optimizer": "sgd", "zero": {"stage": 1}}
    )
    assert all("the loss is" in text and "learning rate" in text for text in said)


def test_gradients_that_are_no_numbers_end_the_run(ranks: Ranks, tmp_path: Path) -> None:
    """DeepSpeed passes over such steps without a word."""
    said = ranks.run(jobs.without_gradient, jobs.prepared(tmp_path / "prepared"), str(tmp_path / "out"), SPEC | {"zero": {"stage": 2}})
    assert all("no gradient was a number at step 1" in text for text in said)


@pytest.mark.parametrize("stage", [0, 1])
def test_ranks_agree_on_the_statistics_of_batch_norms(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    one, other = ranks.run(jobs.drifting, jobs.prepared(tmp_path / "prepared"), str(tmp_path / "out"), SPEC | {"zero": {"stage": stage}})
    assert one == pytest.approx(other, abs=1e-6) and any(one)


@pytest.mark.parametrize("stage", [0, 3])
def test_weights_that_are_no_numbers_are_never_kept(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    """The loss of the only step is that of the weights before it."""
    prepare, out = jobs.prepared(tmp_path / "prepared"), str(tmp_path / "out")
    changes = {"lr": 1e45, "warmup": 0.0, "clip_norm": None, "optimizer": "sgd", "max_steps": 1, "zero": {"stage": stage}}
    said = ranks.run(jobs.failure, prepare, out, SPEC | changes)
    assert all("a weight is no number any more at step 1" in text for text in said)
    assert not checkpoint.commits(open_storage(out))


def test_adapters_train_alone_and_are_merged(ranks: Ranks, tmp_path: Path) -> None:
    prepare = jobs.prepared(tmp_path / "prepared")
    for stage in (2, 3):
        report = ranks.run(
            jobs.adapters, prepare, str(tmp_path / f"out-{stage}"), SPEC | {"epochs": 8, "lr": 3e-2, "zero": {"stage": stage}}
        )[0]
        assert report["trained"] < 0.4 * report["parameters"]
        assert sum(report["losses"][-10:]) < 0.98 * sum(report["losses"][:10])
        assert report["merged"] == pytest.approx(report["adapted"], abs=1e-4)
        assert report["names"] == report["plain_names"]


@pytest.mark.parametrize(("kind", "stage"), [("nf4", 2), ("int8", 2), ("nf4", 0)])
def test_adapters_on_quantised_weights(ranks: Ranks, tmp_path: Path, kind: str, stage: int) -> None:
    prepare = jobs.prepared(tmp_path / "prepared")
    spec = SPEC | {"epochs": 8, "lr": 3e-2, "zero": {"stage": stage}}
    report = ranks.run(jobs.quantised, prepare, str(tmp_path / "out"), spec, kind)[0]
    assert report["quantised"] == 2 * 6 + 1  # the linear layers of two layers, and the pooler's
    assert len(report["moved"]) == 13 and all(size > 1e-3 for size in report["moved"])
    assert sum(report["losses"][-10:]) < 0.98 * sum(report["losses"][:10])
    assert report["merged"] == pytest.approx(report["adapted"], abs=0.3)  # the base is not quantised any more
    assert report["kinds"] <= {"torch.float32", "torch.int64"}
    assert report["same_names"] and report["loaded"] == pytest.approx(report["adapted"], abs=1e-5)
    ranks.run(jobs.quantised, prepare, str(tmp_path / "again"), spec, kind, 4)
    resumed = ranks.run(jobs.quantised, prepare, str(tmp_path / "again"), spec, kind)[0]
    assert len(resumed["losses"]) == 20 and resumed["adapted"] == pytest.approx(report["adapted"], abs=1e-4)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_step_is_looked_at_and_learns_the_same(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    prepare = jobs.prepared(tmp_path / "prepared")
    spec = SPEC | {"zero": {"stage": stage}}
    expected, _ = ranks.run(jobs.train, prepare, str(tmp_path / "plain"), spec)[0]
    (losses, summary, events), other = ranks.run(jobs.looked_at, prepare, str(tmp_path / "out"), spec)
    assert losses == pytest.approx(expected, abs=1e-6)
    (profile,) = [event for event in events if event["kind"] == "profile"]
    assert profile["step"] == PROFILED
    assert 0 < profile["communication"] <= 1
    parameters = sum(p.numel() for p in jobs.model().parameters())
    whole = 1.5 if stage == 3 else 1  # so small that stage 3 leaves them gathered, beside the shards
    assert profile["weights"] == pytest.approx(4 * parameters * whole, rel=0.02)
    states = 8 if stage == 0 else 12  # bytes a parameter: DeepSpeed keeps weights of its own
    assert profile["optimizer"] == pytest.approx(states * parameters / (2 if stage else 1), rel=0.1)
    assert profile["peak"] > 100_000_000
    assert summary["profile"] == {name: value for name, value in profile.items() if name not in ("kind", "step")}
    assert all(0 < event["mfu"] < 1 for event in events if event["kind"] == "train")
    assert 0 < summary["mfu"] < 1
    assert [event["step"] for event in other[2] if event["kind"] == "train"] == list(range(1, 11))


def test_no_rank_ever_holds_a_model_of_ten_times_its_share(tmp_path: Path) -> None:
    ten = Ranks(10)
    try:
        answers = ten.run(jobs.bytes_while_building)
    finally:
        ten.close()
    for most, whole in answers:
        assert whole > 250_000_000  # twenty layers of 12.6 MB
        assert most < 0.2 * whole  # a tenth of it, and the layer that is being made


def test_energy_adds_up_over_ranks_and_restarts(ranks: Ranks, tmp_path: Path) -> None:
    prepare, spec = jobs.prepared(tmp_path / "prepared"), SPEC | {"energy": True, "zero": {"stage": 1}, "validate_every_steps": 5}
    first = ranks.run(jobs.paused, prepare, str(tmp_path / "out"), spec, 1)
    assert [summary["paused"] for summary in first] == [True, True]
    before = checkpoint.commits(open_storage(str(tmp_path / "out")))[-1].progress["energy_kwh"]
    kwh = [summary["energy_kwh"] for _, summary in ranks.run(jobs.train, prepare, str(tmp_path / "out"), spec)]
    assert 0 < before < kwh[0] < 1e-2 and kwh[0] == pytest.approx(kwh[1])  # a second or two of two cores


def test_keeps_the_last_and_the_best(ranks: Ranks, tmp_path: Path) -> None:
    prepare = jobs.prepared(tmp_path / "prepared")
    spec = SPEC | {"epochs": 4, "early_stopping": {"metric": "loss", "patience": 1, "min_delta": 10.0}, "zero": {"stage": 1}}
    _, summary = ranks.run(jobs.train, prepare, str(tmp_path / "out"), spec)[0]
    assert summary["steps"] == 10  # the second validation is not better by 10: it stops after two epochs
    kept = checkpoint.commits(open_storage(str(tmp_path / "out")))
    assert kept[-1].step == 10
    best = checkpoint.best(kept, "loss")
    assert best is not None
    assert summary["published_step"] == best.step
    assert len(kept) <= 2


def test_a_plateau_halves_the_rate_and_a_restart_knows_it(ranks: Ranks, tmp_path: Path) -> None:
    """A rate that moves no weight leaves the validation loss where it was."""
    prepare, out = jobs.prepared(tmp_path / "prepared"), str(tmp_path / "out")
    spec = SPEC | {"lr": 1e-20, "schedule": "plateau", "weight_decay": 0.0, "validate_every_steps": 1, "zero": {"stage": 1}}
    first = ranks.run(jobs.paused, prepare, out, spec, 4)[0]
    assert first["paused"] and first["steps"] == 4
    _, _, events = ranks.run(jobs.looked_at, prepare, out, spec)[0]
    rates = {event["step"]: event["lr"] for event in events if event["kind"] == "train"}
    assert rates == pytest.approx({5: 5e-21, 6: 2.5e-21, 7: 2.5e-21, 8: 1.25e-21, 9: 1.25e-21, 10: 6.25e-22}, rel=1e-6)


def test_what_is_carried_comes_back_as_it_was() -> None:
    kept = checkpoint.Commit(folder="f", step=0, world_size=1, progress=vars(loop.Progress())).canonical()
    assert loop.Progress(**checkpoint.Commit.parse(json.loads(json.dumps(kept))).progress) == loop.Progress()


def test_an_optimiser_on_a_disk_begins_anew(ranks: Ranks, tmp_path: Path) -> None:
    """DeepSpeed would leave its states where they began, and say nothing. (Below stage 3 they are in memory, whatever the setting.)"""
    prepare, out = jobs.prepared(tmp_path / "prepared"), str(tmp_path / "out")
    spec = SPEC | {"zero": {"stage": 1}, "checkpoint": {"every_steps": 2}}
    whole, _ = ranks.run(jobs.train, prepare, out, spec | {"max_steps": 4})[0]
    nvme = {"stage": 1, "offload_optimizer": "nvme", "nvme_path": "/d"}
    losses, summary, events = ranks.run(jobs.looked_at, prepare, out, spec | {"max_steps": 6, "zero": nvme})[0]
    assert [event["step"] for event in events if event["kind"] == "anew"] == [4]
    assert summary["steps"] == len(losses) == 6 and losses[0] == pytest.approx(whole[0], rel=1e-6)
    assert [commit.step for commit in checkpoint.commits(open_storage(out))][-1] == 6


@pytest.mark.parametrize("stage", [0, 3])
def test_an_engine_shows_whether_packed_documents_stay_apart(ranks: Ranks, stage: int) -> None:
    llama = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    falcon = {"model_type": "falcon", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert ranks.run(jobs.packing, llama, {"zero": {"stage": stage}}) == ["", ""]
    assert all("FalconForCausalLM" in said for said in ranks.run(jobs.packing, falcon, {"zero": {"stage": stage}}))


def test_stops_early_by_accuracy_and_publishes_the_best(ranks: Ranks, tmp_path: Path) -> None:
    prepare = jobs.prepared(tmp_path / "prepared")
    stopping = {"metric": "accuracy", "patience": 3}
    spec = SPEC | {"epochs": 20, "lr": 1e-2, "validate_every_steps": 2, "early_stopping": stopping, "zero": {"stage": 2}}
    _, summary, events = ranks.run(jobs.looked_at, prepare, str(tmp_path / "out"), spec)[0]
    accuracies = {event["step"]: event["accuracy"] for event in events if event["kind"] == "validate"}
    best = max(accuracies, key=lambda step: accuracies[step])  # the first of equals
    assert accuracies[best] > accuracies[2]
    assert summary["published_step"] == best and summary["validation"]["accuracy"] == accuracies[best]
    assert summary["steps"] == best + 2 * 3 < 100


def test_a_compiled_model_learns_the_same(ranks: Ranks, tmp_path: Path) -> None:
    prepare, spec = jobs.prepared(tmp_path / "prepared"), SPEC | {"max_steps": 2, "zero": {"stage": 2}}
    expected, _ = ranks.run(jobs.train, prepare, str(tmp_path / "plain"), spec)[0]
    losses, _ = ranks.run(jobs.train, prepare, str(tmp_path / "out"), spec | {"compile": True})[0]
    assert losses == pytest.approx(expected, abs=1e-4)

"""What a rank hands over besides its result."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from raybm.core.errors import UserError
from raybm.stages import train

pytestmark = pytest.mark.integration


def one_of(monkeypatch: pytest.MonkeyPatch, ranks: int, work: Any) -> None:
    """This process is rank 0 of so many, and does `work`."""
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: ranks)
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: None)
    monkeypatch.setattr(train, "train_rank", work)
    monkeypatch.setattr(train, "SHARED_S", 1.0)


def broken(*_: Any) -> None:
    raise UserError("a mistake.", where="train", remedy="Mend it.")


@pytest.mark.usefixtures("ray_session")
def test_a_mistake_is_handed_over_once_and_never_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = ray.remote(num_cpus=0)(train.EventSink).remote()
    one_of(monkeypatch, 1, broken)
    train.worker({"sink": sink})
    assert str(ray.get(sink.result.remote())) == str(UserError("a mistake.", where="train", remedy="Mend it."))
    one_of(monkeypatch, 1, lambda *_: pytest.fail("a group that is started again has nothing to do"))
    train.worker({"sink": sink})


@pytest.mark.usefixtures("ray_session")
def test_a_rank_that_errs_alone_ends_the_group_whose_others_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = ray.remote(num_cpus=0)(train.EventSink).remote()
    one_of(monkeypatch, 2, broken)
    with pytest.raises(UserError):
        train.worker({"sink": sink})
    assert isinstance(ray.get(sink.result.remote()), UserError)


@pytest.mark.parametrize(("timeout_s", "starts", "each_s"), [(600, 4, 150), (100, 1, 100), (130, 2, 65), (5, 1, 60)])
def test_tries_to_start_last_as_long_as_the_job_waits_for_its_place(timeout_s: float, starts: int, each_s: float) -> None:
    assert train._starts(timeout_s) == (starts, each_s)


@pytest.mark.usefixtures("ray_session")
def test_what_rank_0_made_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = ray.remote(num_cpus=0)(train.EventSink).remote()

    def work(config: Any, device: Any, emit: Any) -> dict[str, Any]:
        emit("train", step=1)
        return {"steps": 1}

    one_of(monkeypatch, 2, work)
    train.worker({"sink": sink})
    assert ray.get(sink.result.remote()) == {"steps": 1}
    assert ray.get(sink.drain.remote()) == [("train", {"step": 1})]

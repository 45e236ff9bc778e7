"""Checkpoints of a storage on another machine: what passes through this machine's disk, and that it goes again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raybm.core.errors import NotFound
from raybm.core.storage import open_storage
from raybm.training import checkpoint
from tests.elsewhere import Elsewhere
from tests.ranks import Ranks


class Engine:
    """What of DeepSpeed's engine a checkpoint asks for: each rank writes and reads a file of its own."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        (Path(folder) / f"rank{self.rank}").write_text(tag)

    def load_checkpoint(self, folder: str, tag: str, custom_load_fn: object) -> None:
        assert (Path(folder) / f"rank{self.rank}").read_text() == tag
        assert len(list(Path(folder).iterdir())) == 2


def save_and_load(root: str, cache_root: str) -> list[str]:
    import torch.distributed as dist

    from raybm.core import cache

    cache.ROOT = cache_root
    storage, engine = Elsewhere(Path(root)), Engine(dist.get_rank())
    checkpoint.save(engine, storage, 1, None, {}, "loss")
    checkpoint.load(engine, storage, checkpoint.commits(storage)[-1])
    return storage.did


def test_ranks_of_a_node_share_one_download_and_leave_nothing(ranks: Ranks, tmp_path: Path) -> None:
    did = [each for done in ranks.run(save_and_load, str(tmp_path / "far"), str(tmp_path / "cache")) for each in done]
    assert sum(each.startswith("download") for each in did) == 1
    assert {path.suffix for path in (tmp_path / "cache" / "checkpoints").iterdir()} <= {".lock"}


def test_a_failed_upload_or_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybm.core.cache.ROOT", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoint.dist, "broadcast_object_list", lambda attempt: None)
    (tmp_path / "far").write_text("no folder")
    with pytest.raises(NotFound):
        checkpoint.save(Engine(0), Elsewhere(tmp_path / "far"), 1, None, {}, "loss")
    with pytest.raises(NotFound):
        checkpoint.load(Engine(0), Elsewhere(tmp_path / "none"), checkpoint.Commit(folder="checkpoints/x", step=1, world_size=1))
    assert {path.suffix for path in (tmp_path / "cache" / "checkpoints").iterdir()} <= {".lock"}


def test_one_that_is_taken_away_while_they_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(str(tmp_path))
    for step in (1, 2):
        marker = checkpoint.Commit(folder=f"step-{step}", step=step, world_size=1)
        storage.write(f"{checkpoint.MARKERS}/{step:08}.json", json.dumps(marker.canonical()).encode())
    listed = storage.keys(checkpoint.MARKERS)
    storage.delete(f"{checkpoint.MARKERS}/00000001.json")
    monkeypatch.setattr(type(storage), "keys", lambda self, place: listed)
    assert [commit.step for commit in checkpoint.commits(storage)] == [2]

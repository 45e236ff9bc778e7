"""What fits where, without a Ray."""

from pathlib import Path

import pytest

from raybm.cluster import placement
from raybm.cluster.placement import Ask, Nodes, check_placement, fits, memory_of_a_worker, memory_share, times
from raybm.core.errors import PlacementError

SMALL = Nodes("10.0.0.1", {"CPU": 4.0})
GPU = {"CPU": 8.0, "GPU": 2.0, "accelerator_type:A100": 1.0}


@pytest.mark.parametrize(
    ("ask", "nodes", "fit"),
    [
        (Ask(2, 1, extra_cpus=2), [SMALL], True),
        (Ask(2, 1, extra_cpus=2.5), [SMALL], False),
        (Ask(1, 5), [SMALL, SMALL], False),  # a worker is not split over nodes
        (Ask(2, 3), [SMALL, SMALL], True),
        (Ask(3, 0.1, 0.7), [Nodes("a", GPU)], False),  # two fractions do not make a GPU
        (Ask(2, 1, 1, "A100"), [SMALL, Nodes("a", GPU)], True),
        (Ask(2, 1, 1, "H100"), [SMALL, Nodes("a", GPU)], False),
        (Ask(3, 1, 1), [SMALL, Nodes("gpu", GPU, count=2, present=False)], True),
        (Ask(10, 0.1), [Nodes("a", {"CPU": 1.0})], True),  # 1 ÷ 0.1 is 10, also in floating point
    ],
)
def test_fits(ask: Ask, nodes: list[Nodes], fit: bool) -> None:
    assert fits(ask, nodes) is fit


@pytest.mark.parametrize(
    ("ask", "nodes", "often"),
    [
        (Ask(1, 4), [Nodes("a", {"CPU": 6.0}, count=2)], 2),  # and not three, of twelve CPUs
        (Ask(2, 1, extra_cpus=1), [SMALL, SMALL], 3),
        (Ask(2, 1, 0.5, "A100"), [SMALL, Nodes("a", GPU)], 2),
        (Ask(1, 1, 1, "H100"), [Nodes("a", GPU)], 0),
        (Ask(1, 0.5, extra_cpus=1), [Nodes("a", {"CPU": 0.5})], 0),
    ],
)
def test_how_many_at_a_time(ask: Ask, nodes: list[Nodes], often: int) -> None:
    assert times(ask, nodes) == often


def test_bundles_are_the_workers_and_the_rest() -> None:
    assert Ask(2, 1, 1, "H100", extra_cpus=1.5).bundles() == [{"CPU": 1, "GPU": 1, "accelerator_type:H100": 0.001}] * 2 + [
        {"CPU": 1.0},
        {"CPU": 0.5},
    ]


@pytest.mark.parametrize(
    ("addable", "refused"),
    [([], True), (None, False), ([Nodes("gpu", GPU, 2, present=False)], False), ([Nodes("gpu", GPU, 1, present=False)], True)],
)
def test_refusal_names_what_is_asked_and_what_there_is(monkeypatch: pytest.MonkeyPatch, addable: list[Nodes] | None, refused: bool) -> None:
    monkeypatch.setattr(placement, "_present", lambda: [SMALL])
    monkeypatch.setattr(placement, "_addable", lambda: addable)
    ask = Ask(4, 1, 1, "A100", extra_cpus=1)
    if not refused:
        return check_placement(ask)
    with pytest.raises(
        PlacementError, match=r"4 workers of 1 CPU, 1 GPU \(A100\) each and 1 CPU beside them\. There is 10\.0\.0\.1: 4 CPU"
    ):
        check_placement(ask)
    return None


def test_the_launchers_groups_are_read_from_what_it_leaves_on_the_head(tmp_path: Path) -> None:
    config = tmp_path / "ray_bootstrap_config.yaml"
    config.write_text(
        "max_workers: 3\nhead_node_type: head\navailable_node_types:\n"
        "  head: {resources: {CPU: 0}}\n  gpu: {resources: {CPU: 8, GPU: 2}, max_workers: 10}\n"
        "  cpu: {resources: {CPU: 4}, max_workers: 2}\n"
    )
    assert placement._launcher_groups(config) == [("gpu", {"CPU": 8, "GPU": 2}, 3), ("cpu", {"CPU": 4}, 2)]


def test_a_workers_memory_is_its_share_of_the_roomiest_node() -> None:
    nodes = [Nodes("a", {"CPU": 4.0, "memory": 6e9, "object_store_memory": 2e9}), Nodes("b", {"CPU": 1.0, "memory": 1e9})]
    assert memory_share(Ask(2, 1), nodes) == 4e9
    assert memory_share(Ask(8, 1), nodes) == 2e9
    assert memory_share(Ask(2, 8), nodes) is None


def test_a_gpu_workers_memory_is_known_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_present", lambda: [Nodes("a", GPU | {"accelerator_type:odd": 1.0})])
    assert memory_of_a_worker(Ask(2, 1, 1, "H100")) == 80 * 2**30
    assert memory_of_a_worker(Ask(2, 1, 0.5, "H100")) == 40 * 2**30
    assert memory_of_a_worker(Ask(2, 1, 1)) is None, "one of the kinds is not in the table"

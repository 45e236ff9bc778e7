"""Can the cluster ever hold the job? Ray itself would wait without end, or say so only in its logs."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raybm.core import yamlfile
from raybm.core.errors import DeadlineExceeded, PlacementError

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")  # the launcher's config, which it leaves on the head
SAY_EVERY_S = 15.0
REMEDY = "Ask for less under `resources:`, or use a cluster that has it."


@dataclass(frozen=True)
class Ask:
    """What a job needs at the same time."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float = 0.0
    accelerator_type: str | None = None
    extra_cpus: float = 0.0
    """For what runs beside the workers: the controller, and at least one CPU for Ray Data."""

    def worker(self) -> dict[str, float]:
        need = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        if self.accelerator_type:
            need[f"accelerator_type:{self.accelerator_type}"] = 0.001  # as Ray does: present on the node, never used up
        return {name: amount for name, amount in need.items() if amount}

    def bundles(self) -> list[dict[str, float]]:
        whole, rest = divmod(self.extra_cpus, 1.0)
        extra = [{"CPU": 1.0}] * int(whole) + ([{"CPU": rest}] if rest > 1e-9 else [])
        return [self.worker()] * self.workers + extra

    def __str__(self) -> str:
        beside = f" and {self.extra_cpus:g} CPU beside them" if self.extra_cpus else ""
        each = " each" if self.workers > 1 else ""
        return f"{self.workers} worker{'s' * (self.workers > 1)} of {_show(self.worker())}{each}{beside}"


@dataclass(frozen=True)
class Nodes:
    """`count` nodes of equal resources: present, or what an autoscaler may add."""

    name: str
    resources: Mapping[str, float]
    count: int = 1
    present: bool = True

    def __str__(self) -> str:
        return f"{'' if self.present else f'up to {self.count} more '}{self.name}: {_show(self.resources)}"


def times(ask: Ask, nodes: Sequence[Nodes]) -> int:
    """How often the workers fit at the same time, each whole on one node, the extra CPUs once, on what is left."""
    need = ask.worker()
    places = sum(n.count * min(math.floor(n.resources.get(name, 0.0) / amount + 1e-9) for name, amount in need.items()) for n in nodes)
    cpus = sum(n.count * n.resources.get("CPU", 0.0) for n in nodes) - ask.extra_cpus
    return max(0, min(places // ask.workers, math.floor(cpus / (ask.workers * ask.cpus_per_worker) + 1e-9)))


def fits(ask: Ask, nodes: Sequence[Nodes]) -> bool:
    return times(ask, nodes) > 0


def room(ask: Ask) -> int:
    """How often the nodes that the connected cluster has now hold the workers of `ask` at the same time."""
    return times(ask, _present())


def check_placement(ask: Ask) -> None:
    """Raises PlacementError when neither the nodes of the connected cluster nor those its autoscaler may add can ever hold `ask`.
    What an autoscaler may add is not always known beforehand (KubeRay's says only when asked): `wait_for_place` finds out."""
    present = _present()
    addable = _addable()
    if not fits(ask, present) and addable is not None and not fits(ask, [*present, *addable]):
        raise _refusal(ask, [*present, *addable])


def wait_for_place(ask: Ask, timeout_s: float, say: Callable[[str], None]) -> None:
    """Returns once the cluster has the place free, after its autoscaler started nodes or other jobs ended.
    Raises PlacementError as soon as it is known that it never will, DeadlineExceeded after `timeout_s`."""
    import ray

    check_placement(ask)
    group = ray.util.placement_group(ask.bundles(), strategy="PACK")
    start = said = time.monotonic()
    try:
        while not group.wait(1.0):
            now = time.monotonic()
            if _infeasible(group.id.hex()):
                raise _refusal(ask, _present())
            if now - start > timeout_s:
                raise DeadlineExceeded(
                    f"{ask}: not free after {timeout_s:g} s. There is {_list(_present())}.",
                    where="resources",
                    remedy="Wait for other jobs to end or nodes to start, ask for less, or raise resources.placement_timeout_s.",
                )
            if said == start or now - said > SAY_EVERY_S:
                say(f"Waiting for {ask}; there is {_list(_present())}.")
                said = now
    finally:
        ray.util.remove_placement_group(group)


def memory_of_a_worker(ask: Ask) -> int | None:
    """Bytes that each worker of the connected cluster can have: its GPUs' memory, or its share of the roomiest node's, were
    it to hold as many of them as fit. None where that is not known: GPUs of an unknown kind, nodes that an autoscaler may add."""
    from raybm.plan.devices import accelerators, by_accelerator

    if ask.gpus_per_worker:
        kinds = [ask.accelerator_type] if ask.accelerator_type else accelerators(name for node in _present() for name in node.resources)
        known = [device.memory for kind in kinds if (device := by_accelerator(kind))]
        return int(max(known) * min(1.0, ask.gpus_per_worker)) if known and len(known) == len(kinds) else None
    return None if _addable() != [] else memory_share(ask, _present())


def memory_share(ask: Ask, nodes: Sequence[Nodes]) -> int | None:
    """Of a node's bytes, those of Ray's object store among them, which the kernel gives to whoever needs them."""
    shares = []
    for node in nodes:
        room = math.floor(node.resources.get("CPU", 0.0) / ask.cpus_per_worker + 1e-9)
        held = node.resources.get("memory", 0.0) + node.resources.get("object_store_memory", 0.0)
        if room and held:
            shares.append(int(held / min(room, ask.workers)))
    return max(shares, default=None)


def _present() -> list[Nodes]:
    import ray

    return [Nodes(node["NodeManagerAddress"], node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _addable() -> list[Nodes] | None:
    """Nodes an autoscaler may add to the present ones; [] without one; None when there is one that does not say."""
    import ray
    from ray._private.state import state

    groups = Counter(node["Labels"].get("ray.io/node-group", "") for node in ray.nodes() if node["Alive"])
    if config := state.get_cluster_config():
        known = [(g.name, dict(g.resources), g.max_count if g.max_count >= 0 else 10**6) for g in config.node_group_configs]
    elif BOOTSTRAP.expanduser().exists():
        known = _launcher_groups(BOOTSTRAP.expanduser())
    elif set(groups) - {""}:
        return None  # the nodes belong to groups: somebody scales them
    else:
        return []
    return [Nodes(name, resources, more, present=False) for name, resources, most in known if (more := most - groups[name]) > 0]


def _launcher_groups(path: Path) -> list[tuple[str, dict[str, float], int]]:
    config, _ = yamlfile.parse(path.read_text(encoding="utf-8"), str(path))
    most = int(config.get("max_workers", 10**6))
    return [
        (name, kind.get("resources", {}), min(most, int(kind.get("max_workers", most))))
        for name, kind in config["available_node_types"].items()
        if name != config["head_node_type"]
    ]


def _infeasible(group: str) -> bool:
    """Whether the autoscaler (version 2) has said that it can never place this placement group."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=10))
    return any(request.details.startswith(group) for request in reply.autoscaling_state.infeasible_gang_resource_requests)


def _refusal(ask: Ask, nodes: Sequence[Nodes]) -> PlacementError:
    return PlacementError(f"the cluster can never place {ask}. There is {_list(nodes)}.", where="resources", remedy=REMEDY)


def _list(nodes: Sequence[Nodes]) -> str:
    shown = "; ".join(str(node) for node in nodes[:8]) or "no node"
    return shown + (f"; and {len(nodes) - 8} more nodes" if len(nodes) > 8 else "")


def _show(resources: Mapping[str, float]) -> str:
    from raybm.plan.devices import accelerators

    kinds = accelerators(resources)
    parts = [f"{resources.get('CPU', 0):g} CPU"]
    if resources.get("GPU"):
        parts.append(f"{resources['GPU']:g} GPU" + (f" ({', '.join(kinds)})" if kinds else ""))
    return ", ".join(parts)

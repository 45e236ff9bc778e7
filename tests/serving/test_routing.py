"""How a request waits where all replicas are full."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.request_router.request_router import LocalityScope
from ray.serve.request_router import PendingRequest, ReplicaID

from raybm.serving import routing
from raybm.serving.routing import LeastLoaded


def router(*names: str) -> tuple[Any, list[Any]]:
    """One that Serve has not started, and its replicas."""
    made: Any = object.__new__(LeastLoaded)
    made.initialize_state()
    made._prefer_local_node_routing, made._prefer_local_az_routing, made._colocated_replica_ids = False, True, defaultdict(set)
    return made, there_are(made, *names)


def there_are(made: Any, *names: str) -> list[Any]:
    made._replicas, made._replica_id_set = {name: SimpleNamespace(replica_id=name) for name in names}, set(names)
    return list(made._replicas.values())


def request() -> Any:
    return PendingRequest(args=[], kwargs={}, metadata=None)  # type: ignore[arg-type]


def test_two_of_several_are_offered_at_once() -> None:
    made, replicas = router("a", "b", "c")

    async def go() -> None:
        [pair] = await made.choose_replicas(replicas, request())
        assert len({one.replica_id for one in pair}) == 2
        one = there_are(made, "a")
        assert await made.choose_replicas(one, request()) == [one]
        assert await made.choose_replicas(there_are(made), request()) == []

    asyncio.run(go())


def test_those_of_the_same_zone_are_tried_first() -> None:
    made, replicas = router("far", "near")
    made._colocated_replica_ids[LocalityScope.AVAILABILITY_ZONE] = {"near"}

    async def go() -> None:
        asked = request()
        assert [[one.replica_id for one in group] for group in await made.choose_replicas(replicas, asked)] == [["near"]]
        assert len((await asyncio.wait_for(made.choose_replicas(replicas, asked), 30))[0]) == 2  # at once: not all were tried

    asyncio.run(go())


def test_a_request_that_found_no_place_waits_until_another_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "LOOK_S", 600.0)
    made, replicas = router("a")
    ended = ReplicaID.__new__(ReplicaID), "1"

    async def go() -> None:
        waits, other = request(), request()
        await made.choose_replicas(replicas, waits)
        again = asyncio.create_task(made.choose_replicas(replicas, waits))
        await asyncio.sleep(0.05)
        assert not again.done()
        await made.choose_replicas(replicas, other)  # a newcomer does not wait
        there_are(made, "b")
        threading.Thread(target=made.on_request_completed, args=ended).start()
        [[found]] = await asyncio.wait_for(again, 30)
        assert found.replica_id == "b"  # as they are now
        made.on_request_completed(*ended)
        await asyncio.wait_for(made.choose_replicas(replicas, waits), 30)  # one has ended since the last look

    asyncio.run(go())


def test_requests_of_other_gateways_end_without_a_word() -> None:
    made, replicas = router("a")

    async def go() -> None:
        waits = request()
        for _ in range(2):
            await asyncio.wait_for(made.choose_replicas(replicas, waits), 30)

    asyncio.run(go())

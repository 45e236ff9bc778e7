"""How a request waits where all replicas are full."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.request_router import ReplicaID

from raybm.serving import routing
from raybm.serving.routing import LeastLoaded


def router(*names: str) -> tuple[Any, list[Any]]:
    """One that Serve has not started, and its replicas."""
    made: Any = object.__new__(LeastLoaded)
    made.initialize_state()
    replicas = [SimpleNamespace(replica_id=name) for name in names]
    made._replicas = {replica.replica_id: replica for replica in replicas}
    return made, replicas


def request() -> Any:
    return SimpleNamespace(routing_context=SimpleNamespace(should_backoff=False))


def test_two_of_several_are_offered_at_once() -> None:
    made, replicas = router("a", "b", "c")
    [pair] = asyncio.run(made.choose_replicas(replicas, request()))
    assert len({one.replica_id for one in pair}) == 2
    assert asyncio.run(made.choose_replicas(replicas[:1], request())) == [replicas[:1]]
    assert asyncio.run(made.choose_replicas([], request())) == []


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
        made._replicas = {"b": SimpleNamespace(replica_id="b")}
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

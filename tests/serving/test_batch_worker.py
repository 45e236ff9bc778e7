"""The worker of /v1/batches: who goes on after whom, and what is kept when something ends on the way."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from raybm.core.errors import Conflict, Overloaded, RaybmError
from raybm.core.lease import Lease
from raybm.core.storage import LocalStorage, Storage
from raybm.engines.protocol import Answer
from raybm.serving.adapted import with_adapters
from raybm.serving.offline import stored
from raybm.serving.offline.record import Batches, Results
from raybm.serving.offline.stored import folder_name, new_id
from raybm.serving.offline.work import Work
from tests.fakes import LocalModel
from tests.serving.house import OTHER, Gated, House, ended, free_leases, line, rows, started, started_of, until


def test_letters_beyond_ascii_take_no_more_room_than_live(tmp_path: Path) -> None:
    house, text = House(LocalStorage(tmp_path), max_body_bytes=1000), "漢字\u2028" * 90

    async def go() -> None:
        async with house.client() as client, house.worker():
            one = json.dumps(line(1, text), ensure_ascii=False).encode()
            batch = await ended(client, await started(client, [one]))
            answer = (await rows(client, batch.output_file_id))["c1"]["response"]
            assert answer["body"]["choices"][0]["message"]["content"].split() == text.split()

    asyncio.run(go())


def test_a_worker_that_died_is_followed_by_one_that_goes_on(storage: Storage) -> None:
    """Lines that stood in a part are not asked again; all others are; each is in the output once."""
    house = House(storage, {"chat": Gated(allowed=25)})
    gate = house.models["chat"]

    async def go() -> None:
        async with house.client() as client:
            id = await started(client, [line(n) for n in range(60)])
            async with house.worker():

                async def some() -> bool:
                    return (await client.batches.retrieve(id)).request_counts.completed == 25

                await until(some)
                await until(lambda: gate.inside == 4)
            assert (await client.batches.retrieve(id)).status == "in_progress"
            gate.allowed = 10**9
            free_leases(house.storage)
            async with house.worker():
                batch = await ended(client, id)
            assert batch.status == "completed" and batch.request_counts.completed == 60
            assert len(await rows(client, batch.output_file_id)) == 60

    asyncio.run(go())
    assert sorted(gate.asked.values()) == [1] * 56 + [2] * 4


def test_a_worker_that_died_in_writing_the_files_is_followed_by_one_that_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(LocalStorage(tmp_path))
    wrote, close = [], Batches.close

    def dies_once(self: Batches, batch: Any) -> None:
        wrote.append(batch.status)
        if len(wrote) == 1:
            raise RaybmError("killed")
        close(self, batch)

    monkeypatch.setattr(Batches, "close", dies_once)
    monkeypatch.setattr("raybm.serving.offline.worker.AGAIN_S", 0.0)

    async def go() -> None:
        async with house.client() as client, house.worker():
            batch = await ended(client, await started(client, [line(n) for n in range(5)]))
            await until(lambda: not house.storage.keys("active"))
            assert batch == await client.batches.retrieve(batch.id) and len(await rows(client, batch.output_file_id)) == 5

    asyncio.run(go())
    assert wrote == ["completed", "completed"]


def test_one_that_was_quiet_in_writing_the_files_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another has written them, and thrown the parts away, when it goes on."""
    house = House(LocalStorage(tmp_path))
    read, quiet, go_on, discard = Results.read, threading.Event(), threading.Event(), stored.Files.discard
    discarded: list[Any] = []

    def slow(self: Results) -> Iterator[Any]:
        parts = iter(read(self))
        if house.batches.get("acme", id).status == "finalizing" and not quiet.is_set():
            quiet.set()
            go_on.wait(20)
        yield from parts

    def told(self: stored.Files, tenant: str, ids: Any) -> None:
        discard(self, tenant, ids)
        discarded.append(ids)

    async def go() -> None:
        nonlocal id
        async with house.client() as client:
            id = await started(client, [line(n) for n in range(5)])
            async with house.worker():
                await until(quiet.is_set)
                free_leases(house.storage)
                async with house.worker():
                    batch = await ended(client, id)
                    await until(lambda: not house.storage.keys("active"))
                go_on.set()
                await until(lambda: len(discarded) == 3)  # at the beginning of both, and at the end of the one that was quiet
            assert batch == await client.batches.retrieve(id) and len(await rows(client, batch.output_file_id)) == 5

    id = ""
    monkeypatch.setattr(Results, "read", slow)
    monkeypatch.setattr(stored.Files, "discard", told)
    asyncio.run(go())
    assert len(house.files.ids("acme")) == 2


def test_one_that_was_quiet_adds_nothing_to_what_is_over(tmp_path: Path) -> None:
    house = House(LocalStorage(tmp_path))

    async def go() -> None:
        async with house.client() as client:
            id = await started(client, [line(n) for n in range(5)])
            async with house.worker():
                batch = await ended(client, id)
                await until(lambda: not house.storage.keys("active"))
            before = house.batches.get("acme", id)
            late = Work(before.model_copy(update={"status": "in_progress"}), house.tools())
            await late._add("c1", None, None)
            with pytest.raises(Conflict, match="taken over"):
                await late._flush()
            assert house.batches.get("acme", id) == before and not house.batches.folder("acme", id).keys("parts")
            assert batch == await client.batches.retrieve(id)

    asyncio.run(go())


def test_files_that_come_days_after_their_batch_are_not_taken_for_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house, parts = House(LocalStorage(tmp_path)), stored._parts

    def swept(chunks: Any) -> Iterator[bytes]:
        for part in parts(chunks):
            yield part
            house.files.sweep()

    async def go() -> None:
        async with house.client() as client:
            id = await started(client, [line(n) for n in range(5)])
            house.now += 3 * 86_400
            monkeypatch.setattr(stored, "_parts", swept)
            async with house.worker():
                batch = await ended(client, id)
            assert batch.status == "completed" and len(await rows(client, batch.output_file_id)) == 5

    asyncio.run(go())


def test_two_workers_do_not_run_one_batch(tmp_path: Path) -> None:
    house = House(LocalStorage(tmp_path), {"chat": Gated(allowed=10)})

    async def go() -> None:
        async with house.client() as client, house.worker(), house.worker():
            id = await started(client, [line(n) for n in range(20)])
            await until(lambda: house.models["chat"].inside == 4)
            house.models["chat"].open.set()
            batch = await ended(client, id)
            assert len(await rows(client, batch.output_file_id)) == 20

    asyncio.run(go())
    assert set(house.models["chat"].asked.values()) == {1}


def test_a_part_has_one_writer(tmp_path: Path) -> None:
    first, second = Results(LocalStorage(tmp_path)), Results(LocalStorage(tmp_path))
    assert list(first.read()) == list(second.read()) == []
    first.append([b"1", b"2"])
    with pytest.raises(RaybmError, match="exists already"):
        second.append([b"1"])
    assert list(second.read()) == [[b"1", b"2"]]
    second.append([b"3"])
    assert list(Results(LocalStorage(tmp_path)).read()) == [[b"1", b"2"], [b"3"]]


def test_cancelling_keeps_what_is_done_and_frees_the_model(storage: Storage) -> None:
    house = House(storage, {"chat": Gated(allowed=6)})
    gate = house.models["chat"]

    async def go() -> None:
        async with house.client() as client, house.worker():
            id = await started(client, [line(n) for n in range(20)])
            await until(lambda: gate.inside == 4 and gate.left == 6)
            batch = await client.batches.cancel(id)
            assert batch.status == "cancelling" and (await client.batches.cancel(id)).status in ("cancelling", "cancelled")
            batch = await ended(client, id)
            assert batch.status == "cancelled" and batch.cancelled_at and gate.inside == 0
            assert batch.request_counts.model_dump() == {"total": 20, "completed": 6, "failed": 0}
            assert len(await rows(client, batch.output_file_id)) == 6
            with pytest.raises(openai.BadRequestError, match="is cancelled"):
                await client.batches.cancel(id)

    asyncio.run(go())


def test_a_worker_that_is_ended_while_it_takes_a_lease_lets_it_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taking, ended_here, let_go = threading.Event(), threading.Event(), threading.Event()
    take, leave = Lease._take, Lease.__exit__

    def slow(lease: Lease) -> bool:
        taking.set()
        ended_here.wait(30)
        return take(lease)

    def noted(lease: Lease, *reason: Any) -> None:
        leave(lease, *reason)
        let_go.set()

    monkeypatch.setattr(Lease, "_take", slow)
    monkeypatch.setattr(Lease, "__exit__", noted)
    house = House(LocalStorage(tmp_path))

    async def go() -> None:
        async with house.client() as client:
            await started(client, [line(1)])
            async with house.worker():
                await until(taking.is_set)
            ended_here.set()
            await until(let_go.is_set)

    asyncio.run(go())
    (lease,) = tmp_path.rglob("lease.json")
    assert json.loads(lease.read_text())["holder"] is None


def test_a_batch_that_is_cancelled_before_a_worker_sees_it(tmp_path: Path) -> None:
    house = House(LocalStorage(tmp_path))

    async def go() -> None:
        async with house.client() as client:
            id = await started(client, [line(1)])
            await client.batches.cancel(id)
            async with house.worker():
                batch = await ended(client, id)
            assert batch.status == "cancelled" and batch.output_file_id is None

    asyncio.run(go())
    assert house.models["chat"].asked == {}


def test_a_window_that_ends_leaves_the_answers_and_names_the_rest(tmp_path: Path) -> None:
    house = House(LocalStorage(tmp_path), {"chat": Gated(allowed=6)})

    async def go() -> None:
        async with house.client() as client, house.worker():
            id = await started(client, [line(n) for n in range(20)])
            await until(lambda: house.models["chat"].inside == 4)
            house.now += 24 * 3600
            batch = await ended(client, id)
            assert batch.status == "expired" and batch.expired_at
            assert len(await rows(client, batch.output_file_id)) == 6
            errors = await rows(client, batch.error_file_id)
            assert len(errors) == 14 and {row["error"]["code"] for row in errors.values()} == {"batch_expired"}
            assert all(row["response"] is None for row in errors.values())

    asyncio.run(go())


def test_a_model_without_room_is_asked_again_until_it_has(tmp_path: Path) -> None:
    class Full(Gated):
        async def complete(self, request: Any) -> Answer:
            text = request.messages[-1]["content"]
            self.asked[text] = self.asked.get(text, 0) + 1
            if self.asked[text] < 5:
                raise Overloaded("no room.")
            if text == "word 1":
                raise TimeoutError
            return await LocalModel.complete(self, request)

    house = House(LocalStorage(tmp_path), {"chat": Full()})

    async def go() -> None:
        async with house.client() as client, house.worker():
            batch = await ended(client, await started(client, [line(0), line(1)]))
            assert batch.request_counts.model_dump() == {"total": 2, "completed": 1, "failed": 1}
            assert (await rows(client, batch.error_file_id))["c1"]["response"]["status_code"] == 504

    asyncio.run(go())
    assert house.models["chat"].asked == {"word 0": 5, "word 1": 7}


def test_a_storage_that_fails_for_a_while_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house, append, failures = House(LocalStorage(tmp_path)), Results.append, iter(range(3))

    def broken(self: Results, rows: Any) -> None:
        if next(failures, None) is not None:
            raise RaybmError("the disk is full.")
        append(self, rows)

    monkeypatch.setattr(Results, "append", broken)
    monkeypatch.setattr("raybm.serving.offline.worker.AGAIN_S", 0.01)

    async def go() -> None:
        async with house.client() as client, house.worker():
            batch = await ended(client, await started(client, [line(n) for n in range(40)]))
            assert batch.status == "completed" and len(await rows(client, batch.output_file_id)) == 40

    asyncio.run(go())


def test_many_batches_of_one_tenant_leave_room_for_another(tmp_path: Path) -> None:
    house = House(LocalStorage(tmp_path), {"chat": Gated(allowed=0)}, room=2)
    gate = house.models["chat"]

    async def go() -> None:
        async with house.client() as acme, house.client(OTHER[0]) as other, house.worker():
            ids = [await started(acme, [line(n, f"acme {k}") for n in range(20)]) for k in range(4)]
            await until(lambda: gate.inside == 2)
            id = await started(other, [line(n, "other") for n in range(3)])
            await until(lambda: started_of(house, "other", id))
            assert sum(started_of(house, "acme", one) for one in ids) == 2
            while gate.order.count("other") < 3:  # two answers at a time
                answered = gate.left + 2
                gate.open.set()
                gate.open.clear()
                await until(lambda: gate.left == answered and gate.inside == 2)  # noqa: B023
                assert len(gate.order) < 40  # the three batches take turns
            gate.open.set()
            assert (await ended(other, id)).status == "completed"
            assert [(await ended(acme, one)).status for one in ids] == ["completed"] * 4

    asyncio.run(go())


def test_adapters_are_models_too_and_share_the_room(tmp_path: Path) -> None:
    gated = Gated()
    house = House(LocalStorage(tmp_path), with_adapters({"chat": gated}, {"chat": ("poet",)}), room=3)

    async def go() -> None:
        async with house.client() as client, house.worker():
            lines = [line(n) for n in range(20)] + [line(n, body=line(n)["body"] | {"model": "chat:poet"}) for n in range(20, 40)]
            batch = await ended(client, await started(client, lines))
            assert batch.status == "completed" and batch.request_counts.completed == 40 and gated.most == 3

    asyncio.run(go())


def test_what_was_never_created_is_forgotten(tmp_path: Path) -> None:
    house = House(LocalStorage(tmp_path))
    house.storage.write(f"active/{new_id('batch_', house.now)}.{folder_name('acme')}", b"")  # the gateway was killed right then
    house.batches.sweep()
    assert len(house.batches.active()) == 1
    house.now += 86_400
    house.batches.sweep()
    assert house.batches.active() == []

"""/v1/files: uploads, lists, contents, expiry, and whose they are."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import openai
import pytest

from raybm.core.storage import LocalStorage, Storage
from raybm.serving.files import Transfers
from raybm.serving.offline.stored import Files
from tests.serving.house import CHAT, OTHER, House, ended, line, started, until


def test_tenants_do_not_see_each_other(tmp_path: Path) -> None:
    house = House(LocalStorage(tmp_path))

    async def go() -> None:
        async with house.client() as acme, house.client(OTHER[0]) as other, house.worker():
            id = await started(acme, [line(1)])
            batch = await ended(acme, id)
            asks = [
                lambda: other.files.retrieve(batch.input_file_id),
                lambda: other.files.content(batch.output_file_id),
                lambda: other.files.delete(batch.input_file_id),
                lambda: other.batches.retrieve(id),
                lambda: other.batches.cancel(id),
                lambda: other.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"),
            ]
            for ask in asks:
                with pytest.raises(openai.NotFoundError) as caught:
                    await ask()
                assert caught.value.code == "not_found"
            assert [one async for one in other.files.list()] == [] and [one async for one in other.batches.list()] == []
            assert (await house.http("rb-wrong").get("/v1/files")).status_code == 401

    asyncio.run(go())


@pytest.mark.parametrize("path", ["files/file-x", "files/..%2F..%2Fx/content", "batches/batch_" + "g" * 32, "files/" + "x" * 5000])
def test_ids_that_were_never_given(tmp_path: Path, path: str) -> None:
    async def go() -> None:
        async with House(LocalStorage(tmp_path)).http() as http:
            response = await http.get(f"/v1/{path}")
            assert response.status_code == 404 and set(response.json()["error"]) == {"message", "type", "param", "code"}
            assert len(response.text) < 500

    asyncio.run(go())


def test_uploads_that_are_refused(tmp_path: Path) -> None:
    house = House(LocalStorage(tmp_path), max_file_bytes=1000)

    async def endless() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        while True:
            yield b"x" * 10_000

    async def go() -> None:
        async with house.http() as http:
            form = {"headers": {"Content-Type": "multipart/form-data; boundary=b"}}
            ok = ("f.jsonl", b"x" * 1000)
            many = {str(n): "x" for n in range(20)}
            for status, request in [
                (413, {"files": {"file": ("f.jsonl", b"x" * 1001)}, "data": {"purpose": "batch"}}),
                (413, {"content": endless(), **form}),
                (400, {"files": {"file": ok}, "data": {"purpose": "fine-tune"}}),
                (400, {"files": {"file": ok}}),
                (400, {"files": {"file": ok}, "data": {"purpose": "batch", "expires_after[seconds]": "5"}}),
                (400, {"files": {"file": ok}, "data": {"purpose": "batch", "expires_after": "x", "expires_after[seconds]": "5000"}}),
                (400, {"files": [("file", ok), ("file", ok)], "data": {"purpose": "batch"}}),
                (400, {"files": {"file": ok}, "data": {"purpose": "batch", **many}}),
                (400, {"files": {"file": ok}, "data": {"purpose": "b" * 10_000}}),
                (400, {"data": {"file": "text", "purpose": "batch"}}),
                (400, {"json": {"purpose": "batch"}}),
                (400, {"content": b"--b\r\nnonsense", **form}),
                (400, {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}),
            ]:
                response = await http.post("/v1/files", **request)
                assert response.status_code == status, (request, response.text)
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            for query in ("limit=x", "limit=0", "colour=red", "order=up"):
                response = await http.get(f"/v1/files?{query}")
                assert response.status_code == 400 and "red" not in response.text
            assert (await http.request("PUT", "/v1/files")).headers["allow"] == "GET, POST"
            assert (await http.post("/v1/files", files={"file": ok}, data={"purpose": "batch"})).status_code == 200
            # nothing is left of what was refused
            assert len(house.storage.folders("files")) == 1 and len((await http.get("/v1/files")).json()["data"]) == 1

    asyncio.run(go())


@pytest.mark.parametrize(("pause_s", "before"), [(60.0, b""), (60.0, b"{}" * 10**6), (0.02, b"")], ids=["stuck", "stuck late", "drips"])
def test_a_client_that_sends_too_slowly_is_sent_away(tmp_path: Path, pause_s: float, before: bytes) -> None:
    async def sent() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        yield before
        while True:
            await asyncio.sleep(pause_s)
            yield b"{}"

    async def go() -> None:
        async with House(LocalStorage(tmp_path), request_timeout_s=0.05).http() as http:
            headers = {"Content-Type": "multipart/form-data; boundary=b"}
            response = await http.post("/v1/files", content=sent(), headers=headers)
            assert response.status_code == 408 and response.json()["error"]["code"] == "body_too_slow"

    asyncio.run(go())


def test_files_leave_places_for_other_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transfers, "MAX", 1)
    going = asyncio.Event()

    async def slowly() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        await going.wait()
        yield b'{}\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'

    async def go() -> None:
        async with House(LocalStorage(tmp_path)).http() as http:
            headers = {"Content-Type": "multipart/form-data; boundary=b"}
            first = asyncio.create_task(http.post("/v1/files", content=slowly(), headers=headers))
            await asyncio.sleep(0.1)
            refused = await http.post("/v1/files", files={"file": ("f", b"x")}, data={"purpose": "batch"})
            assert refused.status_code == 503 and "retry-after" in refused.headers
            going.set()
            id = (await first).json()["id"]
            assert (await http.get(f"/v1/files/{id}/content")).content == b"{}"
            assert (await http.get(f"/v1/files/{id}/content")).status_code == 200, "the place is free again"

    asyncio.run(go())


def test_a_slow_storage_holds_up_nobody_but_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    add = Files.add
    monkeypatch.setattr(Files, "add", lambda *given, **more: free.wait(60) and add(*given, **more))

    async def go() -> None:
        async with House(LocalStorage(tmp_path)).http() as http:
            form: Any = {"files": {"file": ("f", b"{}")}, "data": {"purpose": "batch"}}
            uploads = [asyncio.create_task(http.post("/v1/files", **form)) for _ in range(Transfers.MAX)]
            await asyncio.sleep(0.5)
            assert (await asyncio.wait_for(http.get("/v1/files"), 10)).json()["data"] == []
            free.set()
            assert {answer.status_code for answer in await asyncio.gather(*uploads)} == {200}

    asyncio.run(go())


def test_large_files_are_in_parts_and_come_back_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybm.serving.offline.stored.PART_BYTES", 1000)
    house, data = House(LocalStorage(tmp_path)), bytes(range(256)) * 8000

    async def go() -> None:
        async with house.client() as client:
            file = await client.files.create(file=("f", data), purpose="batch")
            assert file.bytes == len(data) and (await client.files.content(file.id)).content == data

    asyncio.run(go())
    assert len(house.storage.keys("files")) == 1 + 2  # COPY_BYTES at a time


def test_lists_come_in_pages(tmp_path: Path) -> None:
    house = House(LocalStorage(tmp_path))

    async def go() -> None:
        async with house.client() as client, house.http() as http:
            ids = [(await client.files.create(file=("f", b"x"), purpose="batch")).id for _ in range(5)]
            assert len(set(ids)) == 5
            listed = [one.id async for one in client.files.list(limit=2)]
            assert sorted(listed) == sorted(ids) and len(listed) == 5
            assert [one.id async for one in client.files.list(limit=2, order="asc")] == listed[::-1]
            page = (await http.get("/v1/files?limit=2")).json()
            assert page["has_more"] and page["last_id"] == page["data"][1]["id"] == listed[1]
            made = [(await client.batches.create(input_file_id=ids[0], endpoint=CHAT, completion_window="24h")).id for _ in range(3)]
            assert sorted([one.id async for one in client.batches.list(limit=2)]) == sorted(made)

    asyncio.run(go())


def test_files_expire(storage: Storage) -> None:
    house = House(storage)

    async def go() -> None:
        async with house.client() as client:
            file = await client.files.create(file=("f", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
            kept = await client.files.create(file=("f", b"x"), purpose="batch")
            house.now += 3600
            with pytest.raises(openai.NotFoundError, match="expired"):
                await client.files.content(file.id)
            assert [one.id async for one in client.files.list()] == [kept.id]
            async with house.worker():
                await until(lambda: file.id not in str(house.storage.keys()))
            assert kept.id in str(house.storage.keys())

    asyncio.run(go())


def test_a_file_in_use_is_not_deleted(tmp_path: Path) -> None:
    house = House(LocalStorage(tmp_path))

    async def go() -> None:
        async with house.client() as client:
            id = await started(client, [line(1)])
            file = (await client.batches.retrieve(id)).input_file_id
            with pytest.raises(openai.BadRequestError, match=id):
                await client.files.delete(file)

    asyncio.run(go())


def test_a_client_that_does_not_read_its_file_is_let_go(tmp_path: Path) -> None:
    house = House(LocalStorage(tmp_path), request_timeout_s=0.2, api_keys=[])
    id = house.files.add("anonymous", [b"x" * 1000], "f", "batch").id
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # its buffers are full

    async def go() -> None:
        scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET"}
        async with asyncio.timeout(10):
            await house.app({**scope, "path": f"/v1/files/{id}/content", "query_string": b"", "headers": []}, receive, send)

    asyncio.run(go())
    assert sent[0]["status"] == 200 and not any(message.get("more_body") is False for message in sent)


def test_a_client_that_leaves_in_mid_upload_is_no_fault_of_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    house = House(LocalStorage(tmp_path), api_keys=[])
    inbox = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"--x\r\nContent-Disposition: form-da", "more_body": True}]
    sent: list[Any] = []

    async def receive() -> Any:
        return inbox.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/files", "query_string": b""}
    asyncio.run(house.app(scope | {"headers": [(b"content-type", b"multipart/form-data; boundary=x")]}, receive, send))
    assert sent[0]["status"] == 499 and all(record.levelname == "INFO" for record in caplog.records)

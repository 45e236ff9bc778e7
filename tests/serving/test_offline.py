"""/v1/files and /v1/batches over ASGI, with the worker, the models and a folder as storage in the same process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from raybm.core.errors import Overloaded, RaybmError
from raybm.core.storage import LocalStorage, Storage, open_storage
from raybm.serving import batches, files
from raybm.serving.auth import new_api_key
from raybm.serving.gateway import Gateway, create_app
from raybm.serving.offline.record import Batches, Results
from raybm.serving.offline.stored import Files
from raybm.serving.offline.work import Pace
from raybm.serving.offline.worker import offline_worker
from raybm.serving.replica import Answer
from raybm.spec.serve import GatewaySpec
from tests.fakes import EchoEngine, LengthClassifier, LocalModel

FOLDER_OR_S3 = ("folder", pytest.param("s3", marks=pytest.mark.integration))
ACME, OTHER = new_api_key(), new_api_key()
KEYS = [{"tenant": "acme", "sha256": ACME[1]}, {"tenant": "other", "sha256": OTHER[1]}]
PACE = Pace(poll_s=0.01, flush_s=0.02, retry_s=0.01)
CHAT = "/v1/chat/completions"


class Gated(LocalModel):
    """Answers as long as `allowed` is not used up; then waits, and says so. Counts how often each prompt was asked."""

    def __init__(self, allowed: int = 10**9) -> None:
        super().__init__(EchoEngine())
        self.allowed, self.asked, self.order = allowed, dict[str, int](), list[str]()
        self.inside = self.most = self.left = 0
        self.open = asyncio.Event()

    async def complete(self, request: Any) -> Answer:
        text = request.messages[-1]["content"]
        self.asked[text] = self.asked.get(text, 0) + 1
        self.order.append(text)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            self.allowed -= 1
            if self.allowed < 0:
                await self.open.wait()
            return await super().complete(request)
        finally:
            self.inside -= 1
            self.left += 1


class House:
    """A gateway and, as long as it runs, a worker, which meet in the storage only."""

    def __init__(self, storage: Storage, models: dict[str, Any] | None = None, room: int = 4, **spec: Any) -> None:
        self.storage, self.models = storage, models or {"chat": Gated(), "size": LocalModel(LengthClassifier())}
        self.spec = GatewaySpec.parse({"api_keys": KEYS, **spec})
        self.room, self.now = dict.fromkeys(self.models, room), 1_800_000_000.0
        self.files, self.batches = Files(storage, self.clock), Batches(storage, self.clock)
        gateway = Gateway(self.spec, self.models, nothing_missing)
        self.app = create_app(gateway, files.routes(gateway, self.files, self.batches), batches.routes(gateway, self.files, self.batches))

    def clock(self) -> float:
        return self.now

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        """Ends as a kill ends it: nothing is written any more."""
        task = asyncio.create_task(offline_worker(self.spec, self.models, self.room, self.storage, PACE, self.clock).run())
        before = asyncio.all_tasks()
        try:
            yield
        finally:
            task.cancel()
            for one in asyncio.all_tasks() - before:
                one.cancel()
            await asyncio.wait([task])

    def http(self, key: str = ACME[0]) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://raybm", headers={"Authorization": f"Bearer {key}"}
        )

    def client(self, key: str = ACME[0]) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(api_key=key, base_url="http://raybm/v1", http_client=self.http(key), max_retries=0)


@pytest.fixture(params=FOLDER_OR_S3)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return LocalStorage(tmp_path)
    return open_storage(request.getfixturevalue("s3")).at(tmp_path.name)


async def nothing_missing() -> dict[str, str]:
    return {}


def line(number: int, content: str = "", **changes: Any) -> dict[str, Any]:
    body = {"model": "chat", "messages": [{"role": "user", "content": content or f"word {number}"}]}
    return {"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": body} | changes


def jsonl(lines: list[Any]) -> bytes:
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)


async def until(condition: Callable[[], Any], timeout_s: float = 20) -> Any:
    async with asyncio.timeout(timeout_s):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.005)


async def started(client: openai.AsyncOpenAI, lines: list[Any], endpoint: Any = CHAT, **more: Any) -> str:
    file = await client.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch")
    return (await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)).id


async def ended(client: openai.AsyncOpenAI, id: str) -> Any:
    async def look() -> Any:
        batch = await client.batches.retrieve(id)
        return batch if batch.status in ("completed", "failed", "expired", "cancelled") else None

    return await until(look)


async def rows(client: openai.AsyncOpenAI, file: str | None) -> dict[str, Any]:
    """By custom_id, each of which is there once."""
    if file is None:
        return {}
    found = [json.loads(one) for one in (await client.files.content(file)).text.splitlines()]
    assert len({row["custom_id"] for row in found}) == len(found)
    return {row["custom_id"]: row for row in found}


def test_official_client_from_upload_to_answers(storage: Storage) -> None:
    house = House(storage)

    async def go() -> None:
        async with house.client() as client, house.worker():
            file = await client.files.create(
                file=("../a\x7f/b\x7f.jsonl", jsonl([line(n) for n in range(30)])),
                purpose="batch",
                expires_after={"anchor": "created_at", "seconds": 7200},
            )
            assert (file.purpose, file.filename, file.status, file.expires_at) == ("batch", "b.jsonl", "processed", 1_800_007_200)
            batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"night": "1"})
            assert batch.status == "validating" and batch.metadata == {"night": "1"} and batch.expires_at == 1_800_086_400
            batch = await ended(client, batch.id)
            assert batch.status == "completed" and batch.error_file_id is None and batch.errors is None
            assert batch.request_counts.model_dump() == {"total": 30, "completed": 30, "failed": 0}
            answers = await rows(client, batch.output_file_id)
            assert sorted(answers) == sorted(f"c{n}" for n in range(30))
            response = answers["c7"]["response"]
            assert response["status_code"] == 200 and answers["c7"]["error"] is None
            assert response["body"]["choices"][0]["message"]["content"] == "word 7" and response["body"]["object"] == "chat.completion"
            assert [one.id async for one in client.files.list(purpose="batch_output")] == [batch.output_file_id]
            assert (await client.files.delete(file.id)).deleted
            with pytest.raises(openai.NotFoundError, match="there is no file"):
                await client.files.retrieve(file.id)

    asyncio.run(go())
    assert house.models["chat"].most == 4  # the room of the model, and no more
    assert [key for key in house.storage.keys("batches") if "/parts/" in key] == []
    assert house.storage.keys("active") == []


@pytest.mark.parametrize(
    ("endpoint", "body", "path"),
    [
        ("/v1/completions", {"model": "chat", "prompt": "a b"}, ("choices", 0, "text")),
        ("/v1/embeddings", {"model": "size", "input": "a b"}, ("data", 0, "object")),
        ("/v1/classify", {"model": "size", "input": "a b"}, ("data", 0, "label")),
    ],
)
def test_every_endpoint_answers_as_live(tmp_path: Path, endpoint: str, body: dict[str, Any], path: Any) -> None:
    house = House(LocalStorage(tmp_path), {"chat": LocalModel(EchoEngine()), "size": LocalModel(LengthClassifier())})

    async def go() -> None:
        async with house.client() as client, house.http() as http, house.worker():
            batch = await ended(client, await started(client, [line(1, url=endpoint, body=body)], endpoint))
            answer = (await rows(client, batch.output_file_id))["c1"]["response"]["body"]
            live = (await http.post(endpoint, json=body)).json()
            for part in path:
                answer, live = answer[part], live[part]
            assert answer == live

    asyncio.run(go())


def test_lines_that_cannot_be_answered_are_in_the_error_file_with_their_status(tmp_path: Path) -> None:
    house = House(LocalStorage(tmp_path), max_body_bytes=4000)
    lines = [
        line(1),
        line(2, "!long prompt"),
        line(3, body={"model": "chat", "messages": []}),
        line(4, body={**line(4)["body"], "stream": True}),
        line(5, body={"model": "size", "messages": [{"role": "user", "content": "x"}]}),
        line(6, "!bug"),
        line(7, "w " * 3000),
    ]

    async def go() -> None:
        async with house.client() as client, house.worker():
            batch = await ended(client, await started(client, lines))
            assert batch.status == "completed" and batch.request_counts.model_dump() == {"total": 7, "completed": 1, "failed": 6}
            assert list(await rows(client, batch.output_file_id)) == ["c1"]
            errors = await rows(client, batch.error_file_id)
            told = {id: (row["response"]["status_code"], row["response"]["body"]["error"]["code"]) for id, row in errors.items()}
            assert told["c2"] == told["c3"] == told["c4"] == (400, "invalid_request")
            assert told["c6"] == (500, "internal_error") and told["c7"] == (413, "body_too_large")
            assert errors["c4"]["response"]["body"]["error"]["param"] == "stream"

    asyncio.run(go())


def test_what_is_wrong_with_a_file_is_told_by_line(tmp_path: Path) -> None:
    house = House(LocalStorage(tmp_path), max_body_bytes=1000)
    lines = [
        line(1),
        b"{",
        b"[]",
        b'{"a": "\xff"}',
        line(1),
        line(6, url="/v1/embeddings"),
        line(7, method="GET"),
        {key: value for key, value in line(8).items() if key != "custom_id"},
        line(9, custom_id=9),
        line(10, body="x"),
        line(11, body={"model": "nope"}),
        b"",
        b'{"custom_id": "c13", "x": "' + b"x" * 10_000 + b'"}',
        b"[" * 5000,
        line(15, "", body={"model": ["chat"]}),
    ]
    codes = {
        2: "invalid_json_line",
        3: "invalid_json_line",
        4: "invalid_json_line",
        5: "duplicate_custom_id",
        6: "mismatched_url",
        7: "invalid_method",
        8: "missing_required_parameter",
        9: "invalid_custom_id",
        10: "invalid_body",
        11: "model_not_found",
        13: "line_too_long",
        14: "invalid_json_line",
        15: "model_not_found",
    }

    async def go() -> None:
        async with house.client() as client, house.worker():
            batch = await ended(client, await started(client, lines))
            assert batch.status == "failed" and batch.failed_at and batch.output_file_id is None
            assert {one.line: one.code for one in batch.errors.data} == codes
            assert "line 1" in next(one.message for one in batch.errors.data if one.line == 5)
            empty = await ended(client, await started(client, [b"", b"  "]))
            assert [one.code for one in empty.errors.data] == ["empty_file"]
            bom = await ended(client, await started(client, [b"\xef\xbb\xbf" + json.dumps(line(1)).encode() + b"\r"]))
            assert bom.status == "completed"

    asyncio.run(go())
    assert house.models["chat"].asked == {"word 1": 1}


def test_too_many_lines(tmp_path: Path) -> None:
    house = House(LocalStorage(tmp_path), max_batch_lines=3)

    async def go() -> None:
        async with house.client() as client, house.worker():
            batch = await ended(client, await started(client, [line(n) for n in range(5)]))
            assert [(one.code, one.line) for one in batch.errors.data] == [("too_many_requests", 4)]

    asyncio.run(go())


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/rerank"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after"),
        ({"colour": "red"}, None),
        ({"input_file_id": None}, "input_file_id"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_at_once(tmp_path: Path, change: dict[str, Any], param: str | None) -> None:
    house = House(LocalStorage(tmp_path))

    async def go() -> None:
        async with house.client() as client, house.http() as http:
            file = await client.files.create(file=("in.jsonl", jsonl([line(1)])), purpose="batch")
            body = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"} | change
            response = await http.post("/v1/batches", json=body)
            assert response.status_code == 400 and response.json()["error"]["param"] == param, response.text
            assert "red" not in response.text
            assert (await http.post("/v1/batches", content=b"{")).status_code == 400

    asyncio.run(go())


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
            assert (await http.get("/v1/files?limit=x")).status_code == 400
            assert (await http.post("/v1/files", files={"file": ok}, data={"purpose": "batch"})).status_code == 200
            # nothing is left of what was refused
            assert len(house.storage.folders("files")) == 1 and len((await http.get("/v1/files")).json()["data"]) == 1

    asyncio.run(go())


def test_a_client_that_is_stuck_in_its_upload_is_sent_away(tmp_path: Path) -> None:
    async def stuck() -> Any:
        yield b"--b\r\n"
        await asyncio.Event().wait()

    async def go() -> None:
        async with House(LocalStorage(tmp_path), request_timeout_s=0.05).http() as http:
            headers = {"Content-Type": "multipart/form-data; boundary=b"}
            response = await http.post("/v1/files", content=stuck(), headers=headers)
            assert response.status_code == 504 and response.json()["error"]["code"] == "deadline_exceeded"

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


def free_leases(storage: Storage) -> None:
    """As after the death of the process that held them: this one lives on."""
    for key in storage.keys("batches"):
        if key.endswith("lease.json"):
            storage.write(key, json.dumps({**json.loads(storage.read(key)), "holder": None}).encode())


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
            gate.open.set()
            done = await ended(other, id)
            assert done.status == "completed" and "other" not in gate.order[15:]  # the three batches took turns
            assert [(await ended(acme, one)).status for one in ids] == ["completed"] * 4

    asyncio.run(go())


def started_of(house: House, tenant: str, id: str) -> bool:
    return house.batches.get(tenant, id).status != "validating"


def test_a_model_that_is_served_no_more(tmp_path: Path) -> None:
    house = House(LocalStorage(tmp_path), {"chat": Gated(allowed=3)})

    async def go() -> None:
        async with house.client() as client:
            id = await started(client, [line(n) for n in range(10)])
            async with house.worker():

                async def some() -> bool:
                    return (await client.batches.retrieve(id)).request_counts.completed == 3

                await until(some)
            free_leases(house.storage)
            other = House(house.storage, {"other": Gated()})
            async with other.worker(), other.client() as client:
                batch = await ended(client, id)
                assert batch.request_counts.model_dump() == {"total": 10, "completed": 3, "failed": 7}
                errors = await rows(client, batch.error_file_id)
                assert {row["response"]["body"]["error"]["code"] for row in errors.values()} == {"model_not_found"}

    asyncio.run(go())

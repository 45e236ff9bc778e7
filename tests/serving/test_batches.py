"""/v1/batches: what is asked, and what is answered."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from raybm.core.storage import LocalStorage, Storage
from tests.fakes import EchoEngine, LengthClassifier, LocalModel
from tests.serving.house import CHAT, Gated, House, ended, free_leases, jsonl, line, rows, started, until


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
        ({"colour": "red"}, "colour"),
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

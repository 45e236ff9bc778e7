"""Answers out of the gateway's memory: which, whose, and how many."""

from __future__ import annotations

from typing import Any

import pytest

from raybm.engines.protocol import Answer
from raybm.serving.auth import new_api_key
from raybm.serving.cache import Kept
from raybm.serving.gateway import Gateway
from raybm.serving.routes import create_app
from raybm.spec.serve import AnswerCache, GatewaySpec
from tests.fakes import EchoEngine, LengthClassifier, LocalModel
from tests.serving.gateway import ask, chat, chunks, nothing_missing

ACME, OTHER = new_api_key(), new_api_key()
KEYS = [{"tenant": "acme", "sha256": ACME[1]}, {"tenant": "other", "sha256": OTHER[1]}]
GREEDY = {"temperature": 0}


class House:
    """A gateway whose models are cached."""

    def __init__(self, **spec: Any) -> None:
        self.chat, self.size = EchoEngine(), LengthClassifier()
        models = {"chat": LocalModel(self.chat), "size": LocalModel(self.size)}
        kept = {name: Kept(AnswerCache(**spec)) for name in models}
        self.app = create_app(Gateway(GatewaySpec.parse({"api_keys": KEYS}), models, nothing_missing, kept=kept))

    def ask(self, path: str, body: Any, key: str = ACME[0]) -> Any:
        response = ask(self.app, "POST", path, json=body, key=key)
        assert response.status_code == 200, response.text
        return response

    def chats(self, body: Any, key: str = ACME[0]) -> str:
        """Its text, streamed or not."""
        response = self.ask("/v1/chat/completions", body, key)
        if not body.get("stream"):
            return str(response.json()["choices"][0]["message"]["content"])
        return "".join(one["choices"][0]["delta"].get("content", "") for one in chunks(response)[:-1])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("settings", [GREEDY, {"seed": 4}], ids=["greedy", "seeded"])
def test_what_would_come_out_the_same_is_not_made_again(stream: bool, settings: dict[str, Any]) -> None:
    house = House()
    body = chat("one two three", stream=stream, **settings)
    assert [house.chats(body) for _ in range(3)] == ["one two three"] * 3
    assert (house.chat.begun, house.chat.closed) == (1, 1)
    assert 'raybm_cached_total{model="chat",version=""} 2.0' in ask(house.app, "GET", "/metrics", key=ACME[0]).text
    house.chats(body | {"max_tokens": 2})
    house.chats(chat("one two four", stream=stream, **settings))
    assert house.chat.begun == 3


def test_what_chance_decides_is_made_each_time() -> None:
    house = House()
    for stream in (False, True):
        house.chats(chat("one two", stream=stream))
        house.chats(chat("one two", stream=stream))
    assert house.chat.begun == 4


def test_a_tenant_sees_what_it_asked_itself() -> None:
    house = House()
    for key in (ACME[0], OTHER[0], ACME[0]):
        house.chats(chat("one", **GREEDY), key)
    assert house.chat.begun == 2


def test_predictions_and_vectors() -> None:
    house = House()
    for _ in range(2):
        assert house.ask("/v1/classify", {"model": "size", "input": ["a", "b"]}).json()["data"][1]["label"] == "short"
        assert house.ask("/v1/embeddings", {"model": "size", "input": "a"}).json()["data"][0]["embedding"]
    assert house.size.batches == [2]
    house.ask("/v1/classify", {"model": "size", "input": ["b", "a"]})
    assert house.size.batches == [2, 2]


def test_an_error_is_not_kept() -> None:
    house = House()
    for _ in range(2):
        assert ask(house.app, "POST", "/v1/chat/completions", json=chat("!bug", **GREEDY), key=ACME[0]).status_code == 500
        assert house.ask("/v1/chat/completions", chat("!broken word", stream=True, **GREEDY)).text.count("error")
    assert house.chat.begun == 4


def test_the_least_recently_used_leave_and_old_ones_too() -> None:
    answer = Answer("x" * 1000, "stop", 1, 1)
    kept = Kept(AnswerCache(max_bytes=3000, ttl_s=3600))
    for key in (b"a", b"b"):
        kept.put(key, answer)
    assert kept.get(b"a") == answer
    kept.put(b"c", answer)
    assert kept.get(b"b") is None and kept.get(b"a") == kept.get(b"c") == answer
    kept.put(b"d", Answer("x" * 3000, "stop", 1, 1))
    assert kept.get(b"d") is None and kept.get(b"a") == answer
    brief = Kept(AnswerCache(ttl_s=1e-9))
    brief.put(b"a", answer)
    assert brief.get(b"a") is None

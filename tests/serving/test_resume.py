"""A client that comes back for the rest of its stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from random import Random
from typing import Any

import httpx
import pytest

from raybm.engines.protocol import Delta, GenerateRequest
from raybm.serving.gateway import Gateway
from raybm.serving.routes import create_app
from raybm.spec.serve import GatewaySpec
from tests.fakes import EchoEngine, LocalModel
from tests.serving.gateway import ask, chat, make_app, nothing_missing, refusal


class Dice(EchoEngine):
    """Nine throws."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        random = Random(request.seed)
        for place in range(9):
            yield Delta(f"{random.randint(1, 6)} ", 1, 1, "stop" if place == 8 else None)


def stream(app: Any, seen: str | None, name: str | None = "job-1", **more: Any) -> httpx.Response:
    headers = {} if seen is None else {"Last-Event-ID": seen}
    headers |= {} if name is None else {"x-request-id": name}
    body = chat("x", stream=True, stream_options={"include_usage": True}, **more)
    return ask(app, "POST", "/v1/chat/completions", json=body, headers=headers)


def said(response: httpx.Response) -> list[str]:
    """Each event without the chunk's own id and date."""
    return [event.partition('"model"')[2] for event in response.text.split("\n\n") if event]


def test_the_rest_is_what_was_missing_wherever_it_broke() -> None:
    app = make_app(models={"chat": LocalModel(Dice())})
    whole = said(stream(app, "0"))
    assert len(whole) == 11
    for seen in range(12):
        assert said(stream(app, str(seen))) == whole[seen:]


def test_draws_are_the_same_for_the_same_request_id_only_where_the_client_may_come_back() -> None:
    app = make_app(models={"chat": LocalModel(Dice())})
    assert said(stream(app, "0", "job-2")) != said(stream(app, "0"))
    assert said(stream(app, None)) != said(stream(app, None))
    assert said(stream(app, "0", "job-2", seed=1)) == said(stream(app, None, seed=1))


@pytest.mark.parametrize(("seen", "name", "more"), [("-1", "a", {}), ("x", "a", {}), ("0", None, {}), ("0", "a", {"n": 2})])
def test_what_cannot_be_come_back_for_is_refused(seen: str, name: str | None, more: dict[str, Any]) -> None:
    assert "last-event-id" in refusal(stream(make_app(), seen, name, **more), 400, "invalid_request")["message"]


def test_a_model_whose_pieces_do_not_come_again_refuses() -> None:
    models = {"chat": LocalModel(EchoEngine()), "chat:poet": LocalModel(EchoEngine()), "sure": LocalModel(EchoEngine())}
    app = create_app(Gateway(GatewaySpec(), models, nothing_missing, repeating={"sure"}))
    for name, status in (("chat", 400), ("chat:poet", 400), ("sure", 200)):
        assert stream(app, "0", model=name).status_code == status
    assert stream(app, None, model="chat").status_code == 200

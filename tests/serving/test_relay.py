from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np
import pytest

from raybm.core.errors import SpecError
from raybm.engines.protocol import Answer, Delta, Embeddings, GenerateRequest
from raybm.serving.relay import Relay
from raybm.spec import ServeSpec
from tests.fakes import EchoEngine
from tests.serving.gateway import ask, chat, make_app, refusal


class Elsewhere(EchoEngine):
    """Knows how many ask it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.here = self.most = 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        self.here += 1
        self.most = max(self.most, self.here)
        try:
            async for delta in super().generate(request):
                yield delta
        finally:
            self.here -= 1

    async def complete(self, request: GenerateRequest) -> Answer:
        return Answer.of([delta async for delta in self.generate(request)])

    def embed(self, texts: Sequence[str]) -> Embeddings:
        return Embeddings(np.ones((len(texts), 2), np.float32))

    async def embed_async(self, texts: Sequence[str]) -> Embeddings:
        return self.embed(texts)


def test_the_gateway_answers_for_it() -> None:
    app = make_app(models={"chat": Relay("chat", Elsewhere(), 4)})
    assert ask(app, "POST", "/v1/chat/completions", json=chat("one two")).json()["choices"][0]["message"]["content"] == "one two"
    assert "two" in ask(app, "POST", "/v1/chat/completions", json=chat("one two", stream=True)).text
    for path, body in (
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/classify", {"input": "a"}),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [1]}),
    ):
        refusal(ask(app, "POST", path, json={"model": "chat", **body}), 400, "unsupported_by_model")


def test_so_much_is_asked_at_once_and_a_place_comes_free_when_somebody_leaves() -> None:
    async def go() -> int:
        engine = Elsewhere()
        relay = Relay("chat", engine, 2)
        slow = [relay.generate(GenerateRequest(prompt="!slow")) for _ in range(2)]
        for one in slow:
            await anext(one)
        waiting = asyncio.create_task(relay.complete(GenerateRequest(prompt="one two")))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await slow[0].aclose()
        assert (await waiting).text == "one two"
        await slow[1].aclose()
        assert engine.here == 0
        return engine.most

    assert asyncio.run(go()) == 2


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"autoscaling": {"max_replicas": 2, "by": {"kind": "ttft", "target_s": 1}}}, r"autoscaling: an endpoint has no replicas"),
        ({"gpus": 1}, r"gpus: an endpoint has no replicas"),
        ({"cpus": 0.5}, r"cpus: an endpoint has no replicas"),
        ({"accelerator_type": "H100"}, r"accelerator_type: an endpoint has no replicas"),
    ],
)
def test_what_replicas_would_need_is_refused(settings: dict[str, Any], wrong: str) -> None:
    engine = {"kind": "remote", "url": "http://127.0.0.1:1/v1", "model": "m"}
    with pytest.raises(SpecError, match=wrong):
        ServeSpec.parse({"models": [{"name": "far", "engine": engine} | settings]})

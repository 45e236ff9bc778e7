"""OpenAI's answers and stream events, as the peers write them."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any


def answer(text: str) -> dict[str, Any]:
    count = len(text.split())
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": "echo",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": count, "completion_tokens": count, "total_tokens": 2 * count},
    }


def chunk_head() -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion.chunk", "created": int(time.time()), "model": "echo"}


def event(head: dict[str, Any], choice: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(head | {"choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"

"""An OpenAI endpoint that gives back the last message's words, with little between socket and answer. The argument is its port."""

from __future__ import annotations

import json
import sys
from typing import Any

import uvicorn
from shapes import answer, chunk_head, event


async def upstream(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    asked = json.loads(body or b"{}")
    text = asked["messages"][-1]["content"] if "messages" in asked else ""
    kind = b"text/event-stream" if asked.get("stream") else b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    if asked.get("stream"):
        head = chunk_head()
        for word in text.split():
            piece = event(head, {"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None})
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        last = event(head, {"index": 0, "delta": {}, "finish_reason": "stop"})
        await send({"type": "http.response.body", "body": last + b"data: [DONE]\n\n"})
    else:
        await send({"type": "http.response.body", "body": json.dumps(answer(text)).encode()})


if __name__ == "__main__":
    uvicorn.run(upstream, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", lifespan="off")

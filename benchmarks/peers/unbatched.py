"""A sentence encoder as it is often served: transformers behind FastAPI and uvicorn, one forward a request. Arguments: port, folder."""

from __future__ import annotations

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from transformers import AutoModel, AutoTokenizer

app = FastAPI()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2], local_files_only=True)
model = AutoModel.from_pretrained(sys.argv[2], use_safetensors=True, local_files_only=True).eval()


@app.get("/ready")
async def ready() -> dict[str, str]:
    return {"status": "ready"}


@app.post("/v1/embeddings")
async def embed(body: dict[str, Any]) -> dict[str, Any]:
    """On the event loop, so that forwards do not fight for the cores: in FastAPI's threads it answers fewer requests."""
    with torch.inference_mode():
        inputs = tokenizer([body["input"]], truncation=True, max_length=256, return_tensors="pt")
        weights = inputs["attention_mask"][:, :, None].float()
        pooled = (model(**inputs).last_hidden_state * weights).sum(1) / weights.sum(1)
        vector = torch.nn.functional.normalize(pooled, dim=-1)[0].tolist()
    tokens = int(inputs["attention_mask"].sum())
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {
        "object": "list",
        "model": body["model"],
        "data": [{"object": "embedding", "index": 0, "embedding": vector}],
        "usage": usage,
    }


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")

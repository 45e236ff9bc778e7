"""Engines without a model, behind engines/protocol.py, and a model that needs no Ray."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np

from raybm.core.errors import Overloaded, UserError
from raybm.core.signature import Signature
from raybm.engines.protocol import Delta, Embeddings, GenerateRequest
from raybm.serving.replica import Answer


class EchoEngine:
    """Generates the words of the last message, one a step; words that begin with ! ask for trouble.

    `!count`: how many generations were begun and closed; `!pid`: the process; `!slow`: 20 ms a word for a thousand words;
    `!stuck`: never a word; `!broken`: an error of ours after the first word; `!bug`: a ZeroDivisionError; `!full`: Overloaded;
    `!long`: UserError.
    """

    signature = Signature(problem="causal_lm", protocols=("generates",), inputs=("messages", "prompt"), outputs=("text",), max_length=1000)

    def __init__(self) -> None:
        self.begun = self.closed = 0

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        text = request.prompt if request.prompt is not None else request.messages[-1]["content"]  # type: ignore[index]
        words = text.split()
        if words[0] == "!full":
            raise Overloaded("no room.")
        if words[0] == "!long":
            raise UserError("the prompt has 2000 tokens, and the context 1000.")
        if words[0] == "!count":
            words = [str(self.begun), str(self.closed)]
        elif words[0] == "!pid":
            words = [str(os.getpid())]
        else:
            self.begun += 1
        limit = request.max_tokens or 1000
        try:
            if words[0] == "!stuck":
                await asyncio.Event().wait()
            if words[0] == "!slow":
                words = ["slow"] * 1000
            for index, word in list(enumerate(words[:limit]))[len(request.written) :]:
                if words[0] == "!broken" and index:
                    raise RuntimeError("secret of the house")
                if words[0] == "!bug":
                    _ = 1 / 0
                last = index == min(len(words), limit) - 1
                reason = ("length" if len(words) > limit else "stop") if last else None
                await asyncio.sleep(0.02 if word == "slow" else 0)
                yield Delta(word if last else f"{word} ", 1, len(text.split()), reason, (index,))  # type: ignore[arg-type]
        finally:
            self.closed += text.split()[0] not in ("!count", "!pid")


class LengthClassifier:
    """Labels a text `long` from ten characters on; `!batches` is labelled with the size of the largest batch so far."""

    signature = Signature(
        problem="text_classification",
        protocols=("predicts", "embeds"),
        inputs=("text",),
        outputs=("label", "score", "scores"),
        labels=("short", "long"),
    )

    def __init__(self) -> None:
        self.batches: list[int] = []

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass

    def predict(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        self.batches.append(len(rows))
        answers = []
        for row in rows:
            label = "long" if len(row["text"]) >= 10 else "short"
            if row["text"] == "!batches":
                label = str(max(self.batches))
            scores = {"short": 0.1, "long": 0.9} if label == "long" else {"short": 0.9, "long": 0.1}
            answers.append({"label": label, "score": 0.9, "scores": scores, "tokens": len(row["text"].split())})
        return answers

    def embed(self, texts: Sequence[str]) -> Embeddings:
        raw = np.array([list(hashlib.sha256(text.encode()).digest()[:8]) for text in texts], np.float32)
        return Embeddings(raw / np.linalg.norm(raw, axis=1, keepdims=True), tuple(len(text.split()) for text in texts))


class LocalModel:
    """An engine in the gateway's own process: what serving.app.Remote is, without Ray."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        deltas = self.engine.generate(request)
        try:
            async for delta in deltas:
                yield delta
        finally:
            await deltas.aclose()

    async def complete(self, request: GenerateRequest) -> Answer:
        deltas = [delta async for delta in self.generate(request)]
        last = deltas[-1]
        return Answer("".join(d.text for d in deltas), last.finish_reason or "stop", last.prompt_tokens, sum(d.tokens for d in deltas))

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        return self.engine.embed(texts)

    async def predict(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.engine.predict(rows)

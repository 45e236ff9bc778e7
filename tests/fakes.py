"""Engines without a model, behind engines/protocol.py, and a model that needs no Ray."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np

from raybm.core.errors import Overloaded, Unsupported, UserError
from raybm.core.signature import Signature
from raybm.engines.protocol import Answer, Chosen, Delta, Embeddings, GenerateRequest, Likely, Scores, Tokens, ToolCall
from raybm.models import dataurl
from raybm.serving import scoring


class EchoEngine:
    """Generates the words of the last message, one a step; words that begin with ! ask for trouble.

    `!count`: how many generations were begun and closed; `!pid`: the process; `!slow`: 20 ms a word for a thousand words;
    `!stuck`: never a word; `!broken`: an error of ours after the first word; `!bug`: a ZeroDivisionError; `!full`: Overloaded;
    `!long`: UserError. A call that must be made is one of the first tool, without arguments; an answer with a schema is `{}`. Every token
    has the probability 1/e.
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
        words = text.split() or [""]
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
        offset = 0
        try:
            if request.must_call:
                yield Delta("", 1, 1, "tool_calls", calls=(ToolCall(0, request.tools[0]["function"]["name"], "{}"),))
                return
            words = ["{}"] if request.schema else words
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
                piece = word if last else f"{word} "
                yield Delta(piece, 1, len(text.split()), reason, (index,), self._noted(piece, offset, request))  # type: ignore[arg-type]
                offset += len(piece)
        finally:
            self.closed += text.split()[:1] not in (["!count"], ["!pid"])

    def _noted(self, piece: str, offset: int, request: GenerateRequest) -> tuple[Chosen, ...]:
        if request.logprobs is None:
            return ()
        likely = Likely(piece, piece.encode(), -1.0)
        return (Chosen(piece, likely.bytes, -1.0, offset, (likely,) * min(request.logprobs, 1)),)

    def tokenize(self, request: GenerateRequest, special: bool) -> Tokens:
        """A token a character."""
        text = "".join(message["content"] for message in request.messages or ()) or request.prompt or ""
        return Tokens((0,) * special + tuple(map(ord, text)), ("<s>",) * special + tuple(text), self.signature.max_length)

    def detokenize(self, ids: Sequence[int]) -> str:
        if max(ids, default=0) >= 0xD800:
            raise UserError("there is no such token.", where="tokens")
        return "".join(map(chr, ids))


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
            if not isinstance(row.get("text"), str):
                raise UserError("there is no text.", where="text")
            label = "long" if len(row["text"]) >= 10 else "short"
            if row["text"] == "!batches":
                label = str(max(self.batches))
            scores = {"short": 0.1, "long": 0.9} if label == "long" else {"short": 0.9, "long": 0.1}
            answers.append({"label": label, "score": 0.9, "scores": scores, "tokens": len(row["text"].split())})
        return answers

    def embed(self, texts: Sequence[str]) -> Embeddings:
        raw = np.array([list(hashlib.sha256(text.encode()).digest()[:8]) for text in texts], np.float32)
        return Embeddings(raw / np.linalg.norm(raw, axis=1, keepdims=True), tuple(len(text.split()) for text in texts))


class PictureClassifier:
    """Labels every picture a cat."""

    signature = Signature(
        problem="image_classification", protocols=("predicts",), inputs=("image",), outputs=("label", "score", "scores"), labels=("cat",)
    )

    def predict(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            dataurl.decode(row.get("image"))
        return [{"label": "cat", "score": 1.0, "scores": {"cat": 1.0}} for _ in rows]


class LocalModel:
    """An engine in the gateway's own process: what serving.app.Remote is, without Ray."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def _can(self, method: str) -> Any:
        if not hasattr(self.engine, method):
            raise Unsupported(f"the model does not {method}.", remedy="Ask another.")
        return getattr(self.engine, method)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        deltas = self._can("generate")(request)
        try:
            async for delta in deltas:
                yield delta
        finally:
            await deltas.aclose()

    async def complete(self, request: GenerateRequest) -> Answer:
        return Answer.of([delta async for delta in self.generate(request)])

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        return self._can("embed")(texts)

    async def score(self, query: str, texts: Sequence[str]) -> Scores:
        return await scoring.score(self, self.engine.signature, query, texts)

    async def predict(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return self._can("predict")(rows)

    async def tokenize(self, request: GenerateRequest, special: bool) -> Tokens:
        return self._can("tokenize")(request, special)

    async def detokenize(self, ids: Sequence[int]) -> str:
        return self._can("detokenize")(ids)

"""The remote engine: asks an OpenAI-compatible endpoint over HTTP, with one pool of connections an event loop.

No key, prompt or header of either side reaches a log or an error.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import httpx2
import numpy as np

from raybm.core.errors import DeadlineExceeded, NotFound, Overloaded, RaybmError, UpstreamFailed, UserError
from raybm.core.signature import Signature
from raybm.engines.protocol import Answer, Delta, Embeddings, GenerateRequest
from raybm.engines.remote import wire
from raybm.engines.remote.spec import Remote

logger = logging.getLogger(__name__)
logging.getLogger("httpx2").setLevel(logging.WARNING)  # it writes a line a request

UNBOUNDED = 10**9  # tokens: the endpoint knows its context, and refuses what is longer
DRAIN_S = 1.0
REMEDY = "See that endpoint, or try again."


class RemoteEngine:
    """A model that answers elsewhere (Generates, Embeds, Relays)."""

    def __init__(self, spec: Remote) -> None:
        self.spec = spec
        if spec.problem == "embedding":
            self.signature = Signature(
                problem="embedding", protocols=("embeds",), inputs=("text",), outputs=("embedding",), max_length=UNBOUNDED
            )
        else:
            inputs = ("messages", "prompt")
            self.signature = Signature(
                problem="causal_lm", protocols=("generates",), inputs=inputs, outputs=("text",), max_length=UNBOUNDED
            )
        self._key = _key(spec)
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncClient] = WeakKeyDictionary()
        self._closed = False

    def check(self) -> None:
        if self._closed:
            raise RaybmError("the engine was closed.", remedy="Send the request again.")

    def close(self) -> None:
        self._closed = True
        for loop, client in list(self._clients.items()):
            if loop.is_running():
                asyncio.run_coroutine_threadsafe(client.aclose(), loop)  # whoever reads from it gets an error
        self._clients.clear()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        path, body = wire.asked(self.spec, request)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        stream = wire.Stream()
        async with self._answer(path, body) as response:
            events = aiter(httpx2.EventSource(response))
            async for event in events:
                if event.data == "[DONE]":
                    with suppress(TimeoutError):
                        async with asyncio.timeout(DRAIN_S):
                            await anext(events, None)  # to the end of the body: only then is the connection taken again
                    break
                chunk = wire.document(event.data)
                if "error" in chunk:
                    raise UpstreamFailed(f"{self._name()} broke off its answer.", remedy=REMEDY)
                if delta := stream.push(chunk):
                    yield delta
        if (last := stream.end()) is None:
            raise UpstreamFailed(f"{self._name()} broke off its answer.", remedy=REMEDY)
        yield last

    async def complete(self, request: GenerateRequest) -> Answer:
        answer = await self._whole(*wire.asked(self.spec, request))
        with self._sense():
            return wire.whole(answer)

    def embed(self, texts: Sequence[str]) -> Embeddings:
        async def once() -> Embeddings:
            try:
                return await self.embed_async(texts)
            finally:
                if client := self._clients.pop(asyncio.get_running_loop(), None):
                    await client.aclose()

        return asyncio.run(once())

    async def embed_async(self, texts: Sequence[str]) -> Embeddings:
        self.check()
        starts = range(0, len(texts), self.spec.max_batch)
        asks = [{"model": self.spec.model, "input": list(texts[start : start + self.spec.max_batch])} for start in starts]
        answers = await asyncio.gather(*(self._whole("embeddings", ask) for ask in asks))
        with self._sense():
            rows = [row["embedding"] for answer in answers for row in sorted(answer["data"], key=lambda row: row["index"])]
            vectors = np.array(rows, np.float32) if rows else np.zeros((0, 0), np.float32)
            if len(vectors) != len(texts):
                raise ValueError("rows are missing")
        tokens = [0] * len(texts)  # the endpoint counts a request's, not a text's: they stand at its first
        for start, answer in zip(starts, answers, strict=True):
            tokens[start] = (answer.get("usage") or {}).get("prompt_tokens", 0)
        return Embeddings(vectors, tuple(tokens))

    async def _whole(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._answer(path, body) as response:
            return wire.document(await response.aread())

    @asynccontextmanager
    async def _answer(self, path: str, body: dict[str, Any]) -> AsyncIterator[httpx2.Response]:
        """The endpoint's good answer, its body unread. Leaving the block early closes the connection, and so ends the work there."""
        self.check()
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = _client(self.spec, self._key)
        try:
            async with self._clients[loop].stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    raise self._refusal(response.status_code, await response.aread())
                with self._sense():
                    yield response
        except httpx2.TimeoutException as error:
            raise DeadlineExceeded(f"{self._name()} did not answer in time ({_words(error)}).", remedy=REMEDY) from None
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.SSEError) as error:
            self.check()
            raise UpstreamFailed(f"{self._name()} cannot be reached ({_words(error)}).", remedy=REMEDY) from None

    def _refusal(self, status: int, body: bytes) -> RaybmError:
        """Of what a client could do something about, the endpoint's own words; of the rest, that it failed."""
        if status in (429, 503):
            return Overloaded(f"{self._name()} has no room for another request now.", remedy="Try again later.")
        if 400 <= status < 500 and status not in (401, 403, 404, 405, 407, 408):
            return UserError(f"{self._name()} refuses the request: {wire.refusal(body)}")
        logger.warning("%s at %s answered with status %d", self._name(), self.spec.url, status)
        return UpstreamFailed(f"{self._name()} failed with status {status}.", remedy=REMEDY)

    @contextmanager
    def _sense(self) -> Iterator[None]:
        """What is not in OpenAI's shape becomes UpstreamFailed."""
        try:
            yield
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            logger.warning("%s at %s: an answer in no shape that is known (%s)", self._name(), self.spec.url, _words(error))
            raise UpstreamFailed(f"{self._name()} gave an answer that is not in OpenAI's shape.", remedy=REMEDY) from None

    def _name(self) -> str:
        return f"the endpoint of {self.spec.model}"


def check(spec: Remote, say: Callable[[str], None]) -> None:
    """Asks the endpoint for its models. Raises NotFound, UserError (the key), UpstreamFailed."""
    try:
        key = _key(spec)
    except UserError as error:
        say(f"{spec.url} cannot be asked for its models from here: {error}")
        return
    try:
        answer = httpx2.get(f"{spec.url.rstrip('/')}/models", headers=_headers(key), timeout=_timeout(spec))
    except httpx2.HTTPError as error:
        raise UpstreamFailed(f"cannot be reached ({_words(error)}).", where=spec.url, remedy="Check `url`, and that it runs.") from None
    if answer.status_code in (401, 403):
        remedy = f"Check what {spec.api_key_env} holds." if spec.api_key_env else "Name the variable that holds one in `api_key_env`."
        raise UserError("the endpoint does not take this key.", where=spec.url, remedy=remedy)
    try:
        names = [entry["id"] for entry in answer.raise_for_status().json()["data"]]
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        say(f"{spec.url} does not list its models (status {answer.status_code}); whether it has {spec.model} is seen at the first request.")
        return
    if spec.model not in names:
        raise NotFound(f"has no model {spec.model!r}.", where=spec.url, remedy=f"There are: {', '.join(map(str, names[:20])) or 'none'}.")


def _client(spec: Remote, key: str | None) -> httpx2.AsyncClient:
    limits = httpx2.Limits(
        max_connections=None,  # the served model's max_ongoing_requests bounds them
        max_keepalive_connections=64,
        keepalive_expiry=2.0,  # before the other side, often after 5 s, closes one just as it is taken again
    )
    return httpx2.AsyncClient(base_url=spec.url, headers=_headers(key), timeout=_timeout(spec), limits=limits)


def _timeout(spec: Remote) -> httpx2.Timeout:
    return httpx2.Timeout(spec.read_timeout_s, connect=spec.connect_timeout_s)


def _headers(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _key(spec: Remote) -> str | None:
    if spec.api_key_env is None:
        return None
    if not (key := os.environ.get(spec.api_key_env, "").strip()):
        raise UserError(f"the environment variable {spec.api_key_env} is not set.", where="api_key_env", remedy="Put the key there.")
    return key


def _words(error: Exception) -> str:
    return type(error).__name__

"""Requests from many clients at once, in a process of their own, so that they do not wait for what the benchmark itself does.

Closed loop: each of N clients sends its next request when it has its answer. Open loop (`rate`): requests come at random moments,
however slow the answers are. `send` runs this file with a Plan on its standard input; it answers with what became of each request.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
import numpy as np

ANSWER_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Ask:
    path: str
    body: Mapping[str, Any]
    leaves: bool = False
    """The client goes away after the first piece of its stream."""
    status: int = 200
    """What it is to be answered with."""


@dataclass(frozen=True)
class Plan:
    url: str
    asks: Sequence[Ask]
    """Sent one after the other, and from the beginning again."""
    clients: int = 1
    seconds: float | None = None
    requests: int | None = None
    """One of these two ends it; answers that are on their way are waited for."""
    rates: Sequence[tuple[float, float]] = ()
    """Open loop: (seconds, requests a second), one after the other, in place of `clients` and `seconds`."""
    warm_up_s: float = 0.0
    """Before the part that counts."""


@dataclass(frozen=True)
class Answer:
    ask: int
    """Its place among the plan's asks."""
    began: float
    """Seconds after the load began."""
    seconds: float
    status: int
    """0: no answer at all."""
    error: str
    gaps: list[float]
    """A stream's seconds to its first piece, and between its pieces."""
    tokens: int
    text: str
    cut: bool
    """A stream that ended neither with [DONE] nor with an error event."""

    @property
    def ended(self) -> float:
        return self.began + self.seconds


@dataclass(frozen=True)
class Outcome:
    answers: list[Answer]
    """Those that ended while it counted."""
    seconds: float
    """How long it counted."""
    epoch: float
    """When the load began, in seconds of the epoch."""
    cpu_share: float
    """Of one core that the clients themselves took: near 1 they are what is slow."""

    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == 200 and not answer.error and not answer.cut]

    @property
    def requests_per_s(self) -> float:
        return len(self.good()) / self.seconds

    @property
    def tokens_per_s(self) -> float:
        return sum(answer.tokens for answer in self.good()) / self.seconds

    def errors(self) -> dict[str, int]:
        return dict(Counter(answer.error or "cut" for answer in self.answers if answer.error or answer.cut))

    def ms(self, percent: float) -> float:
        return percentile([answer.seconds for answer in self.good()], percent)

    def ttft_ms(self, percent: float) -> float:
        return percentile([answer.gaps[0] for answer in self.good()], percent)

    def itl_ms(self, percent: float) -> float:
        return percentile([gap for answer in self.good() for gap in answer.gaps[1:]], percent)


def percentile(seconds: Sequence[float], percent: float) -> float:
    """In milliseconds."""
    return round(1000 * float(np.percentile(seconds, percent)), 2) if seconds else float("nan")


def chat(model: str, text: str, *, stream: bool, max_tokens: int | None = None) -> Ask:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    if max_tokens:
        body["max_tokens"] = max_tokens
    return Ask("/v1/chat/completions", body)


# ---- the benchmark's side


def send(plan: Plan) -> Outcome:
    with sending(plan) as process:
        return outcome(process)


@contextmanager
def sending(plan: Plan) -> Iterator[subprocess.Popen[str]]:
    """The load while the benchmark does something else; `outcome` waits for its end."""
    process = subprocess.Popen([sys.executable, __file__], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    try:
        process.stdin.write(json.dumps(asdict(plan)))
        process.stdin.close()
        process.stdin = None  # or communicate() would flush it
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def outcome(process: subprocess.Popen[str]) -> Outcome:
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load ended with code {process.returncode}")
    said = json.loads(out)
    return Outcome([Answer(**answer) for answer in said.pop("answers")], **said)


# ---- the clients' side


@dataclass
class Clients:
    plan: Plan
    answers: list[Answer] = field(default_factory=list)
    sent: int = 0

    async def run(self) -> dict[str, Any]:
        plan = self.plan
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self.session:
            epoch, self.start = time.time(), time.monotonic()
            if plan.rates:
                await self._open()
                counted = sum(seconds for seconds, _ in plan.rates)
            else:
                await asyncio.gather(*(self._client() for _ in range(plan.clients)))
                counted = plan.seconds or time.monotonic() - self.start
        wall = time.monotonic() - self.start
        if plan.seconds:
            self.answers = [a for a in self.answers if plan.warm_up_s <= a.began + a.seconds <= plan.warm_up_s + plan.seconds]
        share = round(time.process_time() / wall, 2)
        return {"answers": [asdict(a) for a in self.answers], "seconds": counted, "epoch": epoch, "cpu_share": share}

    async def _client(self) -> None:
        end = self.start + self.plan.warm_up_s + self.plan.seconds if self.plan.seconds else float("inf")
        while time.monotonic() < end and (self.plan.requests is None or self.sent < self.plan.requests):
            await self._ask()

    async def _open(self) -> None:
        at, moments = 0.0, random.Random(1)
        tasks = []
        for seconds, rate in self.plan.rates:
            end = at + seconds
            while (at := at + moments.expovariate(rate)) < end:
                await asyncio.sleep(self.start + at - time.monotonic())
                tasks.append(asyncio.create_task(self._ask()))
            at = end
        await asyncio.gather(*tasks)

    async def _ask(self) -> None:
        number = self.sent % len(self.plan.asks)
        self.sent += 1
        ask = self.plan.asks[number]
        began = time.monotonic()
        said: dict[str, Any] = {"status": 0, "error": "", "gaps": [], "tokens": 0, "text": "", "cut": False}
        try:
            async with self.session.post(self.plan.url + ask.path, json=ask.body) as response:
                said["status"] = response.status
                if response.status == 200 and ask.body.get("stream"):
                    await self._read_stream(response, said, began, ask.leaves)
                else:
                    self._read(await response.read(), said, ask.status)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            said["error"], said["cut"] = type(error).__name__, bool(said["gaps"])
        except (ValueError, KeyError, TypeError, IndexError):
            said["error"] = "an answer in another shape"
        self.answers.append(Answer(ask=number, began=began - self.start, seconds=time.monotonic() - began, **said))

    def _read(self, body: bytes, said: dict[str, Any], expected: int) -> None:
        if said["status"] != 200 or expected != 200:
            if said["status"] != expected:
                said["error"] = f"{said['status']} {body[:200].decode(errors='replace')}"
            return
        answer = json.loads(body)
        said["tokens"] = (answer.get("usage") or {}).get("completion_tokens") or 0
        if "choices" in answer:
            said["text"] = answer["choices"][0]["message"]["content"]
        elif "data" in answer and "label" in answer["data"][0]:
            said["text"] = answer["data"][0]["label"]

    async def _read_stream(self, response: aiohttp.ClientResponse, said: dict[str, Any], began: float, leaves: bool) -> None:
        done, last = False, began
        async for line in response.content:
            if not line.startswith(b"data: "):
                continue
            now = time.monotonic()
            if line.startswith(b"data: [DONE]"):
                done = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                said["error"] = f"event: {event['error'].get('code')} {event['error'].get('message')}"
                return
            if usage := event.get("usage"):
                said["tokens"] = usage["completion_tokens"]
            if event["choices"] and (piece := event["choices"][0]["delta"].get("content")):
                said["text"] += piece
                said["gaps"].append(now - last)
                last = now
                if leaves:
                    return
        said["cut"] = not done


def main() -> None:
    given = json.load(sys.stdin)
    plan = Plan(**given | {"asks": [Ask(**ask) for ask in given["asks"]]})
    json.dump(asyncio.run(Clients(plan).run()), sys.stdout)


if __name__ == "__main__":
    main()

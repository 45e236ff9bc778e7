"""OpenAI's wire, from the asking side: requests out, answers in.

Source: https://platform.openai.com/docs/api-reference. What is not in this shape raises ValueError, KeyError, TypeError, IndexError or
AttributeError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raybm.core.errors import UserError
from raybm.engines.protocol import Answer, Chosen, Delta, FinishReason, GenerateRequest, Likely, ToolCall
from raybm.engines.remote.spec import Remote

Json = dict[str, Any]
ANY_OBJECT = {"type": "object"}  # what our own gateway makes of `json_object`, which older endpoints know only
MESSAGE_MAX = 500  # characters of the endpoint's own words


def asked(spec: Remote, request: GenerateRequest) -> tuple[str, Json]:
    """The path and the body of a request. Raises UserError: neither prompt nor messages."""
    body: Json = {"model": spec.model, "temperature": request.temperature, "top_p": request.top_p}
    strict: Json = {"strict": True}
    wanted: Json = {
        "seed": None if request.drawn else request.seed,
        "stop": list(request.stop) or None,
        "frequency_penalty": request.frequency_penalty or None,
        "presence_penalty": request.presence_penalty or None,
    }
    if request.messages is not None:
        wanted[spec.max_tokens_key] = request.max_tokens
        wanted |= {"logprobs": True, "top_logprobs": request.logprobs} if request.logprobs is not None else {}
        if request.tools:
            tools = [
                dict(tool) | {"function": tool["function"] | (strict if tool["function"]["name"] in request.strict else {})}
                for tool in request.tools
            ]
            wanted |= {"tools": tools, "tool_choice": "required" if request.must_call else "auto"}
        elif request.schema == ANY_OBJECT and not request.strict:
            wanted["response_format"] = {"type": "json_object"}
        elif request.schema is not None:
            wanted["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": dict(request.schema)} | (strict if request.strict else {}),
            }
        path, body = "chat/completions", body | {"messages": [_message(message) for message in request.messages]}
    elif request.prompt is not None:
        wanted |= {"max_tokens": request.max_tokens, "logprobs": request.logprobs}
        path, body = "completions", body | {"prompt": request.prompt}
    else:
        raise UserError("either messages or a prompt is needed.", remedy="Give one of the two.")
    return path, body | {key: value for key, value in wanted.items() if value is not None}


def _message(message: Mapping[str, Any]) -> Json:
    """With the arguments of earlier calls as text, where chat templates have them as objects."""
    calls = [
        call | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)}}
        for call in message.get("tool_calls", ())
    ]
    return dict(message) | ({"tool_calls": calls} if calls else {})


@dataclass
class Stream:
    """An answer as its chunks come. The end is kept back until the endpoint has said what the answer took."""

    tokens: int = 0
    characters: int = 0
    usage: Json = field(default_factory=dict)
    last: Delta | None = None
    calls: dict[int, list[str]] = field(default_factory=dict)  # name and arguments, by the call's index

    def push(self, chunk: Json) -> Delta | None:
        self.usage = chunk.get("usage") or self.usage
        delta = None
        for choice in chunk.get("choices") or ():
            said = choice.get("delta") or choice
            for call in said.get("tool_calls") or ():
                name, arguments = self.calls.setdefault(call.get("index", 0), ["", ""])
                given = call.get("function") or {}
                self.calls[call.get("index", 0)] = [name + (given.get("name") or ""), arguments + (given.get("arguments") or "")]
            text = _text(said, choice)
            chosen = _chosen(choice.get("logprobs"), self.characters)
            self.characters += sum(len(token.token) for token in chosen)
            delta = Delta(text or "", max(1, len(chosen)), 0, _reason(choice.get("finish_reason")), logprobs=chosen)
        if delta is None or not (delta.text or delta.logprobs or delta.finish_reason):
            return None
        if delta.finish_reason:
            self.last = delta
            return None
        self.tokens += delta.tokens
        return delta

    def end(self) -> Delta | None:
        """The last delta; None where the endpoint broke off."""
        if self.last is None:
            return None
        last, calls = self.last, tuple(ToolCall(index, *self.calls[index]) for index in sorted(self.calls))
        written = self.usage.get("completion_tokens")
        written = self.tokens + bool(last.text) if written is None else written
        new, prompt = max(0, written - self.tokens), self.usage.get("prompt_tokens") or 0
        return Delta(last.text, new, prompt, last.finish_reason, logprobs=last.logprobs, calls=calls)


def whole(answer: Json) -> Answer:
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    said = choice.get("message") or choice
    text = _text(said, choice)
    calls = tuple(
        ToolCall(index, call["function"]["name"], call["function"]["arguments"]) for index, call in enumerate(said.get("tool_calls") or ())
    )
    reason = _reason(choice.get("finish_reason")) or "stop"
    counts = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 1
    return Answer(text or "", reason, *counts, logprobs=_chosen(choice.get("logprobs"), 0), calls=calls)


def _text(said: Json, choice: Json) -> str | None:
    """What was written; words of refusal are that, too."""
    text: str | None = said.get("text") if said is choice else said.get("content") or said.get("refusal")
    return text


def _reason(given: str | None) -> FinishReason | None:
    reasons: dict[str, FinishReason] = {"length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls"}
    reasons["content_filter"] = "content_filter"
    return reasons.get(given, "stop") if given else None


def _chosen(given: Json | None, offset: int) -> tuple[Chosen, ...]:
    """Of a chat ({"content": [{"token", "bytes", "logprob", "top_logprobs"}]}), or of a completion, which has a list for each."""
    if not given:
        return ()
    if "tokens" in given:
        tops = given.get("top_logprobs") or [None] * len(given["tokens"])
        listed = [
            {"token": token, "logprob": logprob, "top_logprobs": [{"token": one, "logprob": p} for one, p in (top or {}).items()]}
            for token, logprob, top in zip(given["tokens"], given["token_logprobs"], tops, strict=True)
        ]
    else:
        listed = given.get("content") or []
    made = []
    for entry in listed:
        top = tuple(Likely(one["token"], _bytes(one), one["logprob"]) for one in entry.get("top_logprobs") or ())
        made.append(Chosen(entry["token"], _bytes(entry), entry["logprob"], offset, top))
        offset += len(entry["token"])
    return tuple(made)


def _bytes(entry: Json) -> bytes:
    return bytes(entry["bytes"]) if entry.get("bytes") is not None else str(entry["token"]).encode()


def document(body: str | bytes) -> Json:
    data = json.loads(body)
    if not isinstance(data, dict):
        raise ValueError("not an object")
    return data


def refusal(body: bytes) -> str:
    """The words of an error in OpenAI's, FastAPI's or some other shape."""
    try:
        data = document(body)
    except ValueError:
        return "it does not say why."
    error = data.get("error", data)
    words = error if isinstance(error, str) else error.get("message") or error.get("detail") if isinstance(error, dict) else None
    return str(words or "it does not say why.")[:MESSAGE_MAX]

"""Calls of functions: how a model is asked for them, and how they are found in what it writes.

Two styles, told by the chat template: Hermes (https://github.com/NousResearch/Hermes-Function-Calling; Qwen's too), where each call is
JSON between <tool_call> and </tool_call>; and plain JSON (Llama 3), where the whole answer is a call, or several.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from raybm.engines.protocol import ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"
Style = Literal["hermes", "json"]
Json = dict[str, Any]


def style(template: str) -> Style | None:
    """How a model with this chat template writes calls; None: the template takes no tools."""
    if not re.search(r"\btools\b", template):
        return None
    return "hermes" if OPEN in template else "json"


def schema(tools: Sequence[Mapping[str, Any]]) -> Json:
    """The JSON schema of a call of one of the tools."""
    return {"anyOf": [_call_of(tool["function"], f"#/anyOf/{place}/properties/arguments") for place, tool in enumerate(tools)]}


def _call_of(function: Mapping[str, Any], place: str) -> Json:
    properties = {"name": {"const": function["name"]}, "arguments": _moved(function["parameters"], place)}
    return {"type": "object", "properties": properties, "required": ["name", "arguments"], "additionalProperties": False}


def _moved(node: Any, place: str) -> Any:
    """A schema that now stands at `place` of another, its references with it."""
    if isinstance(node, dict):
        return {
            key: place + value[1:] if key == "$ref" and isinstance(value, str) and value.startswith("#") else _moved(value, place)
            for key, value in node.items()
        }
    return [_moved(value, place) for value in node] if isinstance(node, list) else node


def told_in_words(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[Json]:
    """The messages with the tools in a system message, for a template that takes none."""
    functions = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    words = f'Answer with a call of one of these functions, as JSON {{"name": ..., "arguments": {{...}}}}: {functions}'
    first, *rest = messages
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{words}"}, *map(dict, rest)]
    return [{"role": "system", "content": words}, *map(dict, messages)]


def calls_as_text(messages: Sequence[Mapping[str, Any]]) -> list[Json]:
    """The messages with earlier calls as the text that they were, for a template that knows none."""
    return [_as_text(message) for message in messages]


def _as_text(message: Mapping[str, Any]) -> Json:
    calls = [call["function"] for call in message.get("tool_calls", ())]
    if not calls:
        return dict(message)
    lines = [json.dumps({"name": call["name"], "arguments": call["arguments"]}, ensure_ascii=False) for call in calls]
    return {"role": message["role"], "content": "\n".join([message["content"], *lines] if message["content"] else lines)}


class CallStream:
    """Parts an answer, as it grows, into text and calls. What looks like a call and is none of a known tool stays text."""

    def __init__(self, how: Style, names: Collection[str]) -> None:
        self.how, self.names = how, frozenset(names)
        self.held = ""  # what may be, or begin, a call
        self.found = 0
        self.plain = False  # an answer in plain JSON's style that begins otherwise is text to its end

    def push(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """Text that is certainly none of a call, and the calls that are complete."""
        self.held += text
        return self._hermes() if self.how == "hermes" else self._json()

    def flush(self) -> tuple[str, tuple[ToolCall, ...]]:
        """At the answer's end."""
        held, self.held = self.held, ""
        if self.how == "json" and not self.plain and (calls := self._calls(held)):
            return "", calls
        return held, ()

    def _json(self) -> tuple[str, tuple[ToolCall, ...]]:
        self.plain = self.plain or self.held.lstrip()[:1] not in ("", "{", "[")
        if not self.plain:
            return "", ()
        text, self.held = self.held, ""
        return text, ()

    def _hermes(self) -> tuple[str, tuple[ToolCall, ...]]:
        texts: list[str] = []
        calls: list[ToolCall] = []
        while (begin := self.held.find(OPEN)) >= 0 and (end := self.held.find(CLOSE, begin)) >= 0:
            written = self._calls(self.held[begin + len(OPEN) : end])
            calls += written
            after = end + len(CLOSE)
            texts.append(self.held[:begin].rstrip("\n") if written else self.held[:after])
            self.held = self.held[after:].lstrip("\n") if written else self.held[after:]
        if begin < 0:
            keep = next((n for n in range(len(OPEN) - 1, 0, -1) if self.held.endswith(OPEN[:n])), 0)
            begin = len(self.held) - keep
        texts.append(self.held[:begin])
        self.held = self.held[begin:]
        return "".join(texts), tuple(calls)

    def _calls(self, text: str) -> tuple[ToolCall, ...]:
        """The calls that the text is made of; none where it is anything else."""
        documents = _documents(text)
        written = [(d.get("name"), d.get("arguments", d.get("parameters", {}))) for d in documents if isinstance(d, dict)]
        known = [(name, _arguments(given)) for name, given in written if isinstance(name, str) and name in self.names]
        calls = [ToolCall(self.found + place, name, text) for place, (name, text) in enumerate(known) if text is not None]
        if len(calls) < len(documents):
            return ()
        self.found += len(calls)
        return tuple(calls)


def _arguments(given: Any) -> str | None:
    """As text; None where they are no object, or nested too deep."""
    if not isinstance(given, dict):
        return None
    try:
        text = json.dumps(given, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:  # half of a pair that UTF-16 writes an emoji as
        return json.dumps(given)
    except RecursionError:
        return None
    return text


def _documents(text: str) -> list[Any]:
    """JSON documents one after another, or in a list, with spaces or semicolons between them; [] where the text is anything else."""
    decoder, found, at = json.JSONDecoder(), list[Any](), 0
    text = text.strip("; \n\t\r")
    while at < len(text):
        try:
            document, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        found += document if isinstance(document, list) else [document]
        while at < len(text) and text[at] in "; \n\t\r":
            at += 1
    return found

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from raybm.engines import toolcalls
from raybm.engines.protocol import ToolCall
from raybm.engines.toolcalls import CallStream, Style


def parted(how: Style, text: str, size: int) -> tuple[str, list[ToolCall]]:
    """The text in pieces of so many characters."""
    stream, texts, calls = CallStream(how, ["add", "now"]), [], list[ToolCall]()
    for start in range(0, len(text), size):
        piece, found = stream.push(text[start : start + size])
        texts.append(piece)
        calls += found
    piece, found = stream.flush()
    return "".join([*texts, piece]), [*calls, *found]


ADD = ToolCall(0, "add", '{"a": 1, "b": "é"}')
NOW = ToolCall(1, "now", "{}")


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("how", "text", "left", "calls"),
    [
        ("hermes", 'Sure.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call>', "Sure.\n", [ADD]),
        (
            "hermes",
            '<tool_call>{"name": "add", "arguments": {"a": 1, "b": "é"}}</tool_call>\n<tool_call>{"name": "now"}</tool_call>',
            "",
            [ADD, NOW],
        ),
        ("hermes", "1 < 2 <tool", "1 < 2 <tool", []),
        ("hermes", "<tool_call>broken</tool_call> on", "<tool_call>broken</tool_call> on", []),
        ("hermes", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', []),
        ("hermes", '<tool_call>{"name": "add"', '<tool_call>{"name": "add"', []),
        ("json", '{"name": "add", "parameters": {"a": 1, "b": "é"}}', "", [ADD]),
        ("json", ' {"name": "add", "arguments": {"a": 1, "b": "é"}}; {"name": "now", "parameters": {}}\n', "", [ADD, NOW]),
        ("json", '[{"name": "add", "arguments": {"a": 1, "b": "é"}}, {"name": "now"}]', "", [ADD, NOW]),
        ("json", 'I add {"name": "add", "arguments": {}}', 'I add {"name": "add", "arguments": {}}', []),
        ("json", '{"name": "add", "arguments": 1}', '{"name": "add", "arguments": 1}', []),
        ("json", '{"a": 1}', '{"a": 1}', []),
        ("json", "[" * 5000, "[" * 5000, []),
        ("json", '{"name": {"first": "Ada"}, "age": 36}', '{"name": {"first": "Ada"}, "age": 36}', []),
        ("hermes", '<tool_call>{"name": []}</tool_call>', '<tool_call>{"name": []}</tool_call>', []),
        ("json", '{"name": "now", "arguments": {"t": "\\ud83d"}}', "", [ToolCall(0, "now", '{"t": "\\ud83d"}')]),
        ("json", "", "", []),
    ],
)
def test_calls_are_found_however_the_text_comes(how: Style, text: str, left: str, calls: list[ToolCall], size: int) -> None:
    found = parted(how, text, size)
    assert found[1] == calls and found[0].rstrip("\n") == left.rstrip("\n")


def test_text_before_a_call_is_not_held_back() -> None:
    stream = CallStream("hermes", ["add"])
    assert stream.push("Let me see <to") == ("Let me see ", ())
    assert stream.push("day") == ("<today", ())
    assert CallStream("json", ["add"]).push("plain")[0] == "plain"


def test_the_style_is_the_templates() -> None:
    assert toolcalls.style("{{ messages }}") is None
    assert toolcalls.style("{% if tools %}<tool_call>{% endif %}") == "hermes"
    assert toolcalls.style("{% if tools is not none %}{% endif %}") == "json"


def function(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


def test_the_schema_of_a_call_keeps_the_references_of_its_parameters() -> None:
    parameters = {"$defs": {"unit": {"enum": ["c", "f"]}}, "type": "object", "properties": {"unit": {"$ref": "#/$defs/unit"}}}
    schema = toolcalls.schema([function("now", {"type": "object"}), function("weather", parameters)])
    for call, fits in (
        ({"name": "weather", "arguments": {"unit": "c"}}, True),
        ({"name": "weather", "arguments": {"unit": "k"}}, False),
        ({"name": "now", "arguments": {"unit": "k"}}, True),
        ({"name": "rm", "arguments": {}}, False),
    ):
        assert jsonschema.Draft202012Validator(schema).is_valid(call) == fits


def test_templates_without_tools_are_told_in_words() -> None:
    tools = [function("now", {"type": "object"})]
    told = toolcalls.told_in_words([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "?"}], tools)
    assert [m["role"] for m in told] == ["system", "user"] and told[0]["content"].startswith("Be kind.") and '"now"' in told[0]["content"]
    assert [m["role"] for m in toolcalls.told_in_words([{"role": "user", "content": "?"}], tools)] == ["system", "user"]
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": {"a": "é"}}}
    (said,) = toolcalls.calls_as_text([{"role": "assistant", "content": "", "tool_calls": [call]}])
    assert set(said) == {"role", "content"} and json.loads(said["content"]) == {"name": "now", "arguments": {"a": "é"}}

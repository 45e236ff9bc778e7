"""POST /v1/chat/completions. Source: https://platform.openai.com/docs/api-reference/chat"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, field_validator, model_validator
from pydantic_core import from_json

from raybm.engines.protocol import Answer, Chosen, Delta, GenerateRequest, Likely, ToolCall
from raybm.serving.wire.base import Json, Part
from raybm.serving.wire.generation import LOGPROBS_MAX, Generation

TOOLS_MAX = 128
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


def _finite(document: Json) -> Json:
    try:
        json.dumps(document, allow_nan=False)
    except ValueError:
        raise ValueError("numbers should be finite") from None
    return document


JsonObject = Annotated[Json, AfterValidator(_finite)]


class TextPart(Part):
    type: Literal["text"]
    text: str


Text = str | Annotated[list[TextPart], Field(min_length=1)]


def _plain(text: Text) -> str:
    return text if isinstance(text, str) else "".join(part.text for part in text)


class Message(Part):
    """Of the user, or instructions."""

    role: Literal["system", "developer", "user"]
    content: Text
    name: str | None = None

    def plain(self) -> Json:
        """As a chat template takes it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": _plain(self.content)}


class CalledFunction(Part):
    name: Name
    arguments: str
    """A JSON object."""

    @field_validator("arguments")
    @classmethod
    def _object(cls, value: str) -> str:
        try:
            document = from_json(value, allow_inf_nan=False)  # as deep as a body may be, and with whole characters
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise ValueError("should be a JSON object, as text")
        return value


class Call(Part):
    """A call that the model asked for."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Part):
    """An earlier answer of the model: its text, or the calls that it asked for."""

    role: Literal["assistant"]
    content: Text | None = None
    tool_calls: Annotated[list[Call], Field(max_length=TOOLS_MAX)] = []
    name: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise ValueError("content or tool_calls is needed")
        return self

    def plain(self) -> Json:
        message: Json = {"role": "assistant", "content": _plain(self.content or "")}
        if self.tool_calls:  # templates want the arguments as an object
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": json.loads(call.function.arguments)},
                }
                for call in self.tool_calls
            ]
        return message


class ToolMessage(Part):
    """What a called function gave."""

    role: Literal["tool"]
    content: Text
    tool_call_id: str
    name: str | None = None

    def plain(self) -> Json:
        message = {"role": "tool", "content": _plain(self.content), "tool_call_id": self.tool_call_id}
        return message | ({"name": self.name} if self.name else {})


Said = Annotated[Message | AssistantMessage | ToolMessage, Field(discriminator="role")]
Conversation = Annotated[list[Said], Field(min_length=1)]


def plain(conversation: Sequence[Message | AssistantMessage | ToolMessage]) -> tuple[Json, ...]:
    """As a chat template takes it. Some want the function's name with what it gave (Hermes's), which OpenAI's clients leave out."""
    asked = [message for message in conversation if isinstance(message, AssistantMessage)]
    names = {call.id: call.function.name for message in asked for call in message.tool_calls}
    made = [message.plain() for message in conversation]
    return tuple({"name": names[said["tool_call_id"]], **said} if said.get("tool_call_id") in names else said for said in made)


class Function(Part):
    name: Name
    description: str = ""
    parameters: JsonObject = {"type": "object", "properties": {}}
    """A JSON schema of an object."""
    strict: bool = False
    """For `remote` models, which are told so. Of others a call that must be made fits its schema, and one that may be made is their own."""


class Tool(Part):
    type: Literal["function"]
    function: Function

    def plain(self) -> Json:
        function = {"name": self.function.name, "description": self.function.description, "parameters": self.function.parameters}
        return {"type": "function", "function": function}


class NamedFunction(Part):
    name: Name


class NamedTool(Part):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Part):
    name: Name
    schema_: JsonObject = Field(default={"type": "object"}, alias="schema")
    description: str = ""
    strict: bool = False
    """For `remote` models, which are told so. The answer of others always fits the schema."""


class PlainText(Part):
    type: Literal["text"]


class AnyJson(Part):
    """An object, whatever is in it."""

    type: Literal["json_object"]


class FittingJson(Part):
    """What fits a JSON schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class Chat(Generation):
    """An answer to a conversation."""

    ID, OBJECT, CHUNK = "chatcmpl", "chat.completion", "chat.completion.chunk"

    messages: Conversation
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool = False
    """The log-probability of each token of the answer."""
    top_logprobs: Annotated[int, Field(ge=0, le=LOGPROBS_MAX)] | None = None
    """And those of so many likeliest ones at each place; needs `logprobs`."""
    response_format: Annotated[PlainText | AnyJson | FittingJson, Field(discriminator="type")] = PlainText(type="text")
    tools: Annotated[list[Tool], Field(max_length=TOOLS_MAX)] = []
    """Functions that the model may call."""
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    """none: an answer in text; auto: text or calls; required: a call of one of the tools; a named one: a call of that."""
    parallel_tool_calls: bool = True
    """false: one call at most."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice is required, and there are no tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError("tool_choice names none of the tools")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self._callable() and not isinstance(self.response_format, PlainText):
            raise ValueError("response_format and tools exclude each other; set tool_choice to none for an answer that fits the format")
        return self

    def _callable(self) -> list[Tool]:
        """The tools that this answer may call."""
        if isinstance(self.tool_choice, NamedTool):
            return [tool for tool in self.tools if tool.function.name == self.tool_choice.function.name]
        return [] if self.tool_choice == "none" else self.tools

    def request(self) -> GenerateRequest:
        fitting = self.response_format.json_schema if isinstance(self.response_format, FittingJson) else None
        return GenerateRequest(
            **self.sampling(),
            messages=plain(self.messages),
            max_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            schema={"type": "object"} if isinstance(self.response_format, AnyJson) else fitting.schema_ if fitting else None,
            strict=("",) * fitting.strict if fitting else tuple(one.function.name for one in self._callable() if one.function.strict),
            tools=tuple(tool.plain() for tool in self._callable()),
            must_call=self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool),
        )

    def choice(self, whole: Answer, index: int) -> Json:
        calls = [_call(call) for call in self._wanted(whole.calls)]
        message: Json = {"role": "assistant", "content": whole.text or (None if calls else "")}
        if calls:
            message["tool_calls"] = calls
        return {"index": index, "message": message, "logprobs": self._logprobs(whole), "finish_reason": whole.finish_reason}

    def piece(self, delta: Delta, index: int, *, first: bool) -> Json:
        calls = [{"index": call.index, **_call(call)} for call in self._wanted(delta.calls)]
        said: Json = {"role": "assistant"} if first else {}
        if delta.text or not (calls or delta.finish_reason):
            said["content"] = delta.text
        if calls:
            said["tool_calls"] = calls
        return {"index": index, "delta": said, "logprobs": self._logprobs(delta), "finish_reason": delta.finish_reason}

    def _wanted(self, calls: Sequence[ToolCall]) -> list[ToolCall]:
        return [call for call in calls if self.parallel_tool_calls or call.index == 0]

    def _logprobs(self, said: Answer | Delta) -> Json | None:
        if not self.logprobs:
            return None
        return {"content": [_likely(one) | {"top_logprobs": [_likely(top) for top in one.top]} for one in said.logprobs], "refusal": None}


def _call(call: ToolCall) -> Json:
    name = uuid.uuid4().hex[:9]  # Mistral's templates want nine letters and digits
    return {"id": name, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _likely(one: Likely | Chosen) -> Json:
    return {"token": one.token, "logprob": one.logprob, "bytes": list(one.bytes)}

"""ChatterBot's corpus format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TextIO

from raybm.core import yamlfile
from raybm.core.errors import SpecError
from raybm.data.source import Row, Source


class Conversations(Source):
    """YAML files with `conversations:`, a list of lists of alternating lines (the format of chatterbot-corpus); the column is `messages`.
    The user speaks first; a last line that nobody answers is left out."""

    kind: Literal["conversations"] = "conversations"

    def rows(self, stream: TextIO) -> Iterator[tuple[int, Row | str]]:
        try:
            data, lines = yamlfile.parse(stream.read(), "")
        except SpecError as error:
            yield error.problems[0].line or 1, error.problems[0].what
            return
        found = data.get("conversations") if isinstance(data, dict) else None
        if not isinstance(found, list):
            yield 1, "no list `conversations:`"
            return
        for index, spoken in enumerate(found):
            yield lines.get(("conversations", index), 1), _messages(spoken)


def _messages(spoken: Any) -> Row | str:
    if not isinstance(spoken, list) or len(spoken) < 2:
        return "a conversation is a list of two lines or more"
    if not all(isinstance(line, str | int | float) for line in spoken):
        return "a line of the conversation is not text"
    answered = spoken[: len(spoken) // 2 * 2]
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": str(line)} for i, line in enumerate(answered)]}

"""ChatterBot's corpus format."""

from __future__ import annotations

from typing import Literal

from raybm.data.source import Source


class Conversations(Source):
    """YAML files with `conversations:`, a list of lists of alternating lines (the format of chatterbot-corpus); the column is `messages`."""

    kind: Literal["conversations"] = "conversations"

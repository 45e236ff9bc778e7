"""Settings of the remote engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from raybm.engines.base import EngineBase

if TYPE_CHECKING:
    from raybm.core.storage import Storage
    from raybm.engines.protocol import Engine


class Remote(EngineBase):
    """Any OpenAI-compatible endpoint, so that one gateway fronts all. The served model has no `ref` and no replicas: gateways ask."""

    WEIGHTS = False

    kind: Literal["remote"] = "remote"
    url: Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#@]*)?$")]
    """Where its API begins, mostly with /v1 at the end."""
    model: Annotated[str, Field(min_length=1)]
    """The model's name there."""
    problem: Literal["causal_lm", "embedding"] = "causal_lm"
    """What it does: answers chats and prompts, or embeds texts."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """The environment variable, on the nodes of the gateways and of the worker of batches, that holds the endpoint's key."""
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the bound of a chat's answer; OpenAI's own newer models take max_completion_tokens only."""
    connect_timeout_s: PositiveFloat = 5.0
    """How long a connection may take."""
    read_timeout_s: PositiveFloat = 60.0
    """Silence of the endpoint after which a request is given up."""
    max_batch: PositiveInt = 256
    """Texts in one embedding request to the endpoint."""

    def check(self, ref: str | None, storage: Storage, say: Callable[[str], None]) -> None:
        """Asks the endpoint whether it has the model. Raises NotFound, UpstreamFailed."""
        from raybm.engines.remote.engine import check

        check(self, say)

    def load(self, ref: str | None, storage: Storage) -> Engine:
        """Raises UserError: no key."""
        from raybm.engines.remote.engine import RemoteEngine

        return RemoteEngine(self)

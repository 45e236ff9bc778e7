"""What a generation may ask for beyond text, and not every engine can."""

from __future__ import annotations

from typing import Literal

from raybm.core.errors import Unsupported
from raybm.engines.protocol import GenerateRequest

Feature = Literal["logprobs", "frequency_penalty and presence_penalty", "response_format", "tools"]


def asked(request: GenerateRequest) -> list[Feature]:
    wants: dict[Feature, bool] = {
        "logprobs": request.logprobs is not None,
        "frequency_penalty and presence_penalty": bool(request.frequency_penalty or request.presence_penalty),
        "response_format": request.schema is not None,
        "tools": bool(request.tools),
    }
    return [feature for feature, wanted in wants.items() if wanted]


def check(request: GenerateRequest, *can: Feature) -> None:
    """Raises Unsupported where the request asks for more than an engine can."""
    for feature in asked(request):
        if feature not in can:
            remedy = f"Leave it out; it can {', '.join(can)}." if can else "Leave it out."
            raise Unsupported("is nothing that this model's engine can.", where=feature, remedy=remedy)

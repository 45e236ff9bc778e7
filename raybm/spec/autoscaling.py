"""How many replicas a model has, and what that goes by."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from raybm.core.spec import Check, Spec


class OngoingRequests(Spec):
    """Requests under way and waiting, for each replica."""

    kind: Literal["ongoing_requests"] = "ongoing_requests"
    target: PositiveFloat = 8.0
    """Requests in one replica at which another is started."""


class Queue(Spec):
    """Requests that wait: for a replica, or in it for their first token. Replicas are taken away when nobody waits and the requests
    under way would fit fewer."""

    kind: Literal["queue"] = "queue"
    target: PositiveFloat = 2.0
    """Waiting requests for each replica at which more are started."""


class TokensInFlight(Spec):
    """Tokens of prompts and answers that are being generated: what fills a language model's cache. For language models."""

    kind: Literal["tokens_in_flight"] = "tokens_in_flight"
    target: PositiveFloat = 8192.0
    """Tokens in one replica at which another is started."""


class TimeToFirstToken(Spec):
    """The time from the gateway to the first token, as a mean of the last half minute; for language models."""

    kind: Literal["ttft"] = "ttft"
    target_s: PositiveFloat = 1.0
    """Above it replicas are added; below half of it they are taken away one by one."""


Load = Annotated[OngoingRequests | Queue | TokensInFlight | TimeToFirstToken, Field(discriminator="kind")]


class Autoscaling(Spec):
    """Ray Serve's autoscaling of one model's replicas."""

    min_replicas: NonNegativeInt = 1
    """0 lets an idle model leave its node; the next request then waits for it to load."""
    max_replicas: PositiveInt = 1
    """Replicas at the highest load."""
    by: Load = OngoingRequests()
    """What the load is measured by."""
    upscale_delay_s: NonNegativeFloat = 10.0
    """How long the load must be high before replicas are added; from none to the first it is not waited."""
    downscale_delay_s: NonNegativeFloat = 300.0
    """How long the load must be low before replicas are taken away."""
    look_back_s: PositiveFloat = 30.0
    """Over how long the load is averaged."""

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(
            ("min_replicas", "max_replicas"),
            lambda low, high: (f"{low} is more than max_replicas, {high}.", "Lower it or raise max_replicas.") if low > high else None,
        ),
    )

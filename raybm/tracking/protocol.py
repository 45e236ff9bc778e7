"""What a tracker is to the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from raybm.core.errors import UserError

Listener = Callable[[str, dict[str, Any]], None]
LONGEST_VALUE = 500  # characters of a parameter, which trackers cut or refuse beyond


class Tracker(Protocol):
    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """The run is over: well, where there is no exception."""

    def event(self, kind: str, fields: dict[str, Any]) -> None:
        """As of core.events.Events. Never raises: what a tracker cannot take must not end a run."""


def numbers(kind: str, fields: Mapping[str, Any]) -> dict[str, float]:
    """What can be plotted of an event, by "kind/name"; nothing of trials that go on, which are told again at their end."""
    if kind == "trying":
        return {}
    return {
        f"{kind}/{name}": float(value)
        for name, value in fields.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def flattened(job: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """A job's keys by their paths, with their values as text."""
    for name, value in job.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", str(value)[:LONGEST_VALUE]


def missing(kind: str, place: str, error: ImportError) -> UserError:
    return UserError(f"{kind} is not installed ({error.name}).", where=place, remedy="Run: pip install 'raybm[tracking]'")

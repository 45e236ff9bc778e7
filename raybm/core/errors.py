"""The error tree. Every error says where, what was wrong, and what would be right.

```
RaybmError                exit 1   something failed that the user could not have known
├── UserError             exit 2   the input is wrong
│   ├── SpecError         exit 2   one or more mistakes in a spec, all of them listed
│   ├── DataError         exit 2   rows or files that cannot be used
│   ├── NotFound          exit 2   a model, run, version, alias or file that does not exist
│   ├── TooLong           exit 2   more tokens than the model takes
│   └── Unsupported       exit 2   a model or engine is asked for what it cannot do
├── GateRefused           exit 3   the evaluation fell short of publish.gate
├── PlacementError        exit 4   the cluster can never place the job
├── StorageError          exit 5   the storage refused or could not be reached
│   ├── Conflict          exit 5   somebody else wrote first (compare-and-swap lost)
├── DeadlineExceeded      exit 6   something that was waited for did not come in time
│   └── Busy              exit 6   others held it all the while
├── Overloaded            exit 7   no room for another request; try again later
├── EngineDied            exit 1   a served model computes no more; its replica is replaced
├── UpstreamFailed        exit 8   an endpoint that is not ours failed, or cannot be reached
└── Cancelled             exit 130 the user asked for the run to stop
```

They cross process borders inside Ray, so all of them pickle. HTTP statuses are the gateway's business.
"""

from __future__ import annotations

from dataclasses import dataclass


class RaybmError(Exception):
    """What went wrong (`what`), at which key, file or thing (`where`), and what would be right (`remedy`)."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)
        self.what, self.where, self.remedy = what, where, remedy

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.remedy)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head} {self.remedy}".rstrip()


def _rebuild(cls: type[RaybmError], what: str, where: str, remedy: str) -> RaybmError:
    return cls(what, where=where, remedy=remedy)


class EngineDied(RaybmError):
    pass


class UserError(RaybmError):
    exit_code = 2


class DataError(UserError):
    pass


class NotFound(UserError):
    pass


class TooLong(UserError):
    pass


class Unsupported(UserError):
    pass


class GateRefused(RaybmError):
    exit_code = 3


class PlacementError(RaybmError):
    exit_code = 4


class StorageError(RaybmError):
    exit_code = 5


class Conflict(StorageError):
    pass


class DeadlineExceeded(RaybmError):
    exit_code = 6


class Busy(DeadlineExceeded):
    pass


class Overloaded(RaybmError):
    exit_code = 7


class UpstreamFailed(RaybmError):
    exit_code = 8


class Cancelled(RaybmError):
    exit_code = 130


@dataclass(frozen=True)
class Problem:
    """One mistake in a spec: the dotted `path` of the key, what is wrong there and what would be right."""

    path: str
    what: str
    remedy: str = ""
    line: int | None = None

    def render(self, source: str) -> str:
        place = f"{source}:{self.line}" if source and self.line else source
        head = ": ".join(part for part in (place, self.path, self.what) if part)
        return f"{head} {self.remedy}".rstrip()


class SpecError(UserError):
    """All the mistakes of one spec at once, in the order of the file."""

    def __init__(self, problems: tuple[Problem, ...], source: str = "") -> None:
        super().__init__("\n".join(problem.render(source) for problem in problems))
        self.problems, self.source = problems, source

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problems, self.source)


class Paused(Exception):
    """Training stands at a checkpoint where it was asked to pause; the same stage goes on from there."""

    def __init__(self, step: int, validation: dict[str, float]) -> None:
        super().__init__(f"paused after step {step}")
        self.step, self.validation = step, validation

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.step, self.validation)

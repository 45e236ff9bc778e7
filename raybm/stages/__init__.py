"""The stages of a job's life, one thin file each. A stage is a module with NAME, INPUTS, CODE, ON_RAY, View, outside and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from raybm.core.artifact import Artifact
from raybm.core.context import Context
from raybm.core.spec import Spec


class Stage(Protocol):
    @property
    def NAME(self) -> str: ...

    @property
    def INPUTS(self) -> tuple[str, ...]:
        """Names of earlier stages whose artifacts it takes."""

    @property
    def CODE(self) -> tuple[str, ...]:
        """Parts of raybm/ whose source enters the artifact's key."""

    @property
    def ON_RAY(self) -> bool:
        """Whether it needs a cluster."""

    @property
    def View(self) -> type[Spec]:
        """Exactly the spec values it reads: nothing else is visible to it, or hashed."""

    @property
    def outside(self) -> Callable[[Any], str] | None:
        """Digest of what a view names outside of the spec (files, packages) as it is now; None where it names nothing."""

    def run(self, view: Any, inputs: Mapping[str, Artifact], out: Artifact, context: Context) -> dict[str, Any]:
        """Writes files through `out.storage` and returns the record's metrics. The runner writes the record last."""

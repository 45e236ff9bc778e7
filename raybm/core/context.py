"""What a stage may use of the run it is part of, beside its view and its inputs. None of it is hashed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raybm.core.artifact import Artifact, Record
from raybm.core.events import Events
from raybm.core.storage import Storage


@dataclass(frozen=True)
class Context:
    job: Mapping[str, Any]
    """The whole canonical spec, for lineage."""
    job_name: str
    storage: Storage
    """The root of the job's storage."""
    resources: Any
    """The spec's `resources`: where work is placed, which does not change what it computes."""
    run_dir: Path
    """Local folder of the run: metrics.jsonl, report.html."""
    events: Events
    progress: Callable[[str], None]
    """One line to a person."""
    records: Mapping[str, Record] = field(default_factory=dict)
    """Of the stages before this one."""
    alone: bool = False
    """One rank's work is done in this process, as by a sweep's small trials, and not by workers of Ray's."""
    until: int | None = None
    """Validations after which training pauses (raises Paused)."""
    branches_from: Artifact | None = None
    """Training that this one branches off, where its last phase begins."""

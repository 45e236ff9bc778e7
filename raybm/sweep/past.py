"""What a run's sweep left in the storage, for those who look at it afterwards, or while it goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from raybm.core.errors import NotFound, UserError
from raybm.core.registry import Registry
from raybm.core.runs import SWEEP, read_state
from raybm.core.storage import Storage
from raybm.search.space import at
from raybm.sweep.trial import Trial, costs, ended, mean, stored


class Past:
    """`root`: the storage that the run was in. Raises NotFound where there is no such run, and UserError for one without a sweep."""

    def __init__(self, root: Storage, run: str) -> None:
        self.root, self.run = root, run
        self.state = read_state(root, run)
        self.job: dict[str, Any] = json.loads(root.read(f"runs/{run}/spec.json"))
        sweep = self.job.get("sweep")
        if sweep is None:
            raise UserError("has no sweep.", where=run, remedy="`raybm status` shows what it was.")
        self.objectives: dict[str, str] = sweep["objectives"]
        self.fields: list[str] = list(sweep["space"])
        self.by = " with ".join(part["kind"] for part in (sweep["sampler"], sweep["scheduler"]) if part)
        try:
            noted = json.loads(root.read(f"runs/{run}/{SWEEP}"))
        except NotFound:
            raise UserError("has not begun with its trials.", where=run, remedy="Look at `raybm logs`.") from None
        points, repeats = noted.get("points", math.inf), noted.get("repeats", math.inf)  # of one that is over
        found = {number: trials for number, trials in stored(root.at(noted["storage"])).items() if number <= points}
        self.points = {number: [trial for trial in trials if trial.repeat < repeats] for number, trials in found.items()}
        self.costs = {number: costs(trials, self.objectives) for number, trials in self.points.items()}
        self.ranked = sorted(self.points, key=lambda number: (number != noted.get("best"), self.costs[number]))
        """Numbers of the points, the best one first; of a run that is over, the one that it went on with."""
        self.trials = [trial for number in self.ranked for trial in self.points[number]]

    @property
    def finished(self) -> bool:
        """Whether a point is, with all its seeds."""
        return bool(self.ranked) and math.isfinite(self.costs[self.ranked[0]][0])

    def best(self) -> Trial:
        """Raises UserError where none is finished."""
        if not self.finished:
            raise UserError("no trial is finished.", where=self.run, remedy="`raybm sweep show` says why those that failed did.")
        return self.trials[0]

    def published(self) -> tuple[str, int]:
        """Name and version of the model that the run published. Raises UserError where it published none."""
        key = self.state.artifacts.get("publish")
        if key is None:
            raise UserError("published nothing.", where=self.run, remedy="The job needs a `publish` section, and its gate to hold.")
        metrics = json.loads(self.root.read(f"artifacts/publish/{key}/record.json"))["metrics"]
        return metrics["name"], metrics["version"]


def known(
    root: Storage, source: str, fields: Sequence[str], objectives: Sequence[str]
) -> Iterator[tuple[dict[str, Any], list[float] | None]]:
    """What a run's sweep, or a published version's job, had in these fields, and what came of it in these metrics (None: of a version).
    Raises NotFound, and UserError for a run without a sweep."""
    scheme, _, rest = source.rpartition(":")
    if scheme == "registry":
        name, _, version = rest.partition("@")
        lineage: Any = Registry(root).get(name, version).facts["lineage"]
        yield {path: at(lineage["spec"], path) for path in fields}, None
        return
    past = Past(root, source)
    for trials in past.points.values():
        scores = [mean(trials, name) for name in objectives] if ended(trials) == "finished" else [None]
        if None not in scores and not trials[0].phases:
            changes = trials[0].changes
            values = {path: changes[path] if path in changes else at(past.job, path) for path in fields}
            yield values, [score for score in scores if score is not None]

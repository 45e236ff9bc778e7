"""What a run's sweep left in the storage, for those who look at it afterwards, or while it goes on."""

from __future__ import annotations

import json
import math
import statistics

from raybm.core.errors import NotFound, UserError
from raybm.core.runs import SWEEP, read_state
from raybm.core.storage import Storage
from raybm.sweep.search import Trial


class Past:
    """`root`: the storage that the run was in. Raises NotFound where there is no such run, and UserError for one without a sweep."""

    def __init__(self, root: Storage, run: str) -> None:
        self.root, self.run = root, run
        self.state = read_state(root, run)
        sweep = json.loads(root.read(f"runs/{run}/spec.json")).get("sweep")
        if sweep is None:
            raise UserError("has no sweep.", where=run, remedy="`raybm status` shows what it was.")
        self.objectives: dict[str, str] = sweep["objectives"]
        self.fields: list[str] = list(sweep["space"])
        self.by = " with ".join(part["kind"] for part in (sweep["sampler"], sweep["scheduler"]) if part)
        try:
            place = json.loads(root.read(f"runs/{run}/{SWEEP}"))["storage"]
        except NotFound:
            raise UserError("has not begun with its trials.", where=run, remedy="Look at `raybm logs`.") from None
        stored = root.at(place)
        self.trials = sorted((Trial.parse(json.loads(stored.read(key)), key) for key in stored.keys("")), key=lambda trial: trial.name)
        seeds: dict[int, list[Trial]] = {}
        for trial in self.trials:
            seeds.setdefault(trial.point, []).append(trial)
        self.costs = {point: self._cost(trials) for point, trials in seeds.items()}
        self.trials.sort(key=lambda trial: self.costs[trial.point])

    def best(self) -> Trial:
        """Raises UserError where none is finished."""
        if not self.trials or math.isinf(self.costs[self.trials[0].point]):
            raise UserError("no trial is finished.", where=self.run, remedy="`raybm sweep show` says why those that failed did.")
        return self.trials[0]

    def published(self) -> tuple[str, int]:
        """Name and version of the model that the run published. Raises UserError where it published none."""
        key = self.state.artifacts.get("publish")
        if key is None:
            raise UserError("published nothing.", where=self.run, remedy="The job needs a `publish` section, and its gate to hold.")
        metrics = json.loads(self.root.read(f"artifacts/publish/{key}/record.json"))["metrics"]
        return metrics["name"], metrics["version"]

    def _cost(self, trials: list[Trial]) -> float:
        """Of a point in the first objective, the mean over its seeds, the lower the better; endless where one is not finished."""
        name, mode = next(iter(self.objectives.items()))
        if any(trial.end != "finished" or name not in trial.metrics for trial in trials):
            return math.inf
        mean = statistics.fmean(trial.metrics[name] for trial in trials)
        return mean if mode == "min" else -mean

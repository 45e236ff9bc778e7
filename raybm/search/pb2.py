"""Population based bandits."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from raybm.search.population import Draws, Exchange, Member, Population
from raybm.search.space import Dimension

if TYPE_CHECKING:
    import numpy as np

CANDIDATES = 1000
FAR = 1e5  # a length over which nothing changes
REMEMBERED = 200
"""Steps of members that the process is fitted to, the last ones: its time grows with their cube."""


class Pb2(Population):
    """Population based bandits (Parker-Holder et al. 2020, arXiv:2002.02518): as `pbt`, with new values where a Gaussian process, in which
    what was seen fades with time, expects the metric to gain most. For numbers, and for few members."""

    kind: Literal["pb2"] = "pb2"

    def explored(self, donor: Member, exchange: Exchange) -> dict[str, Any]:
        import numpy as np

        space, random, generations = exchange.space, exchange.random, exchange.generations
        seen = [
            ([float(time), *_shares(space, member.values)], member.parent.cost - member.cost)
            for time, members in enumerate(generations)
            for member in members
            if member.parent is not None and member.parent.cost is not None and member.cost is not None
        ][-REMEMBERED:]
        draws = Draws(random)
        if len(seen) < 2:
            return {name: dimension.draw(draws, name) for name, dimension in space.items()}
        now = float(len(generations))
        candidates = np.array([[now, *(random.random() for _ in space)] for _ in range(CANDIDATES)])
        taken = [[now, *_shares(space, values)] for values in exchange.fresh]
        upper = _upper_bounds(np.array([place for place, _ in seen]), np.array([gain for _, gain in seen]), taken, candidates)
        chosen = candidates[int(upper.argmax()), 1:]
        return {name: dimension.value(float(share)) for (name, dimension), share in zip(space.items(), chosen, strict=True)}


def _shares(space: Mapping[str, Dimension], values: Mapping[str, Any]) -> list[float]:
    return [dimension.share(values[name]) for name, dimension in space.items()]


def _upper_bounds(places: np.ndarray, gains: np.ndarray, taken: list[list[float]], candidates: np.ndarray) -> np.ndarray:
    """What the candidates may gain, of the process over (time, shares). `taken` count as seen with the gain that is expected there,
    so that the members of one exchange do not all try the same."""
    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, Matern, WhiteKernel

    fields = places.shape[1] - 1
    never = (FAR, FAR * 1.01)
    alike = RBF([FAR] + [0.3] * fields, [never] + [(0.05, 5.0)] * fields)
    fading = Matern([5.0] + [FAR] * fields, [(1.0, 100.0)] + [never] * fields, nu=0.5)
    process = GaussianProcessRegressor(alike * fading + WhiteKernel(0.1, (1e-4, 1.0)), normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at the ends of the bounds, where it is meant to stay
        process.fit(places, gains)
    if taken:
        expected = process.predict(np.array(taken))
        process = GaussianProcessRegressor(process.kernel_, optimizer=None, normalize_y=True)
        process.fit(np.vstack([places, taken]), np.concatenate([gains, expected]))
    mean, deviation = process.predict(candidates, return_std=True)
    upper: np.ndarray = mean + math.sqrt(0.2 + max(0.0, math.log(0.4 * (1 + len(places))))) * deviation
    return upper

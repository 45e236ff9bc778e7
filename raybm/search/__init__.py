"""Searching for hyperparameters: what proposes values (samplers), and what stops trials early, or changes them on the way (schedulers).

Both are families of specs with a literal `kind`. Samplers, and schedulers that stop, have a `build()` that imports their library;
those that change are populations, with what one does in an exchange. To add one: write its file, add it to the union.
"""

from typing import Annotated

from pydantic import Field

from raybm.search.asha import Asha
from raybm.search.cma_es import CmaEs
from raybm.search.gp import Gp
from raybm.search.grid import Grid
from raybm.search.hyperband import HyperBand
from raybm.search.median import MedianStopping
from raybm.search.pb2 import Pb2
from raybm.search.pbt import Pbt
from raybm.search.population import Member, Population
from raybm.search.random import Random
from raybm.search.space import Dimension, SpaceSpec, points
from raybm.search.tpe import Tpe

SamplerSpec = Annotated[Grid | Random | Tpe | CmaEs | Gp, Field(discriminator="kind")]
SchedulerSpec = Annotated[Asha | HyperBand | MedianStopping | Pbt | Pb2, Field(discriminator="kind")]

__all__ = ["Asha", "Dimension", "Member", "Population", "SamplerSpec", "SchedulerSpec", "SpaceSpec", "points"]

"""JobSpec and ServeSpec: what a user writes, composed of the rooms' own specs. Loads no torch, no Ray, no transformers."""

from raybm.spec.job import JobSpec
from raybm.spec.serve import ServeConfig, ServeSpec

__all__ = ["JobSpec", "ServeConfig", "ServeSpec"]

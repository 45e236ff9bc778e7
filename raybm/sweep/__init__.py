"""Sweeps: many trials of a job under Ray Tune, and the job with the best one's values.

A trial walks the runner's stages as any job does, up to what its objectives need, so what trials have in common is made once, and what was
trained before, in this sweep or another, is not trained again. Small trials (one worker) do their work in the trial's own process, which is
used again for the next one; others are gangs of Ray Train's. Each trial stands in a file of its own in the storage: the same sweep begun
again leaves the finished ones as they are and begins with those that were not, which go on from their checkpoints.
"""

from raybm.sweep.before import check
from raybm.sweep.search import Search, run

__all__ = ["Search", "check", "run"]

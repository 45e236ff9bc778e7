"""Where a job runs: an embedded local Ray, or a cluster, joined (`connect`) or sent to (`submit`). Loads no Ray until asked.

Both ways end in the same `raybm run`: a submitted job is that command on the cluster's head, where `connect` finds the
cluster's address in its environment.
"""

from raybm.cluster.jobs import Job, cancel, jobs, submit
from raybm.cluster.placement import Ask, check_placement, memory_of_a_worker, room, wait_for_place
from raybm.cluster.session import Connection, connect

__all__ = [
    "Ask",
    "Connection",
    "Job",
    "cancel",
    "check_placement",
    "connect",
    "jobs",
    "memory_of_a_worker",
    "room",
    "submit",
    "wait_for_place",
]

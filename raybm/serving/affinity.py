"""Generations that begin alike go to one replica, whose prefix cache has that beginning.

Rendezvous hashing (Thaler and Ravishankar, 1998): every gateway ranks the replicas alike without a word to the others, and where one
leaves or comes, only its own requests move. A replica that has more than its share of the work is passed over (Mirrokni, Thorup and
Zadimoghaddam, 2018), so that one popular beginning does not leave the others idle.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import FIFOMixin, LocalityMixin, MultiplexMixin, PendingRequest, RequestRouter, RunningReplica

from raybm.engines.protocol import GenerateRequest
from raybm.serving.parcel import unpacked

PROMPT_CHARS = 1024  # of a prompt, that count as its beginning
OVERLOAD = 1.25  # times the mean number of requests, that a replica may have before the next in the ranking is asked


def config() -> RequestRouterConfig:
    return RequestRouterConfig(request_router_class=f"{__name__}.{ByPrefix.__name__}")


class ByPrefix(FIFOMixin, LocalityMixin, MultiplexMixin, RequestRouter):
    """Serve's request router of a deployment; each handle has one. Where all replicas are full, a place that gets free is the oldest
    request's (FIFO)."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups in the order in which they are tried; of a group, Serve takes the idlest."""
        key = None
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # all replicas are offered at once: a second try waits first
            key = beginning(pending_request.args)
        if key is None:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {id: self.replica_queue_len_cache.get(replica.replica_id) or 0 for id, replica in by_id.items()}
        return [[by_id[id]] for id in ranked(key, loads)]


def beginning(arguments: Sequence[Any]) -> bytes | None:
    """A digest of what a generation shares with those that can use its cached prefix: of a chat all up to the first thing that the user
    said, which later turns repeat; of a prompt its first characters. None: it is no generation. `arguments`: of a replica's
    method."""
    request, _ = unpacked(arguments[-1]) if arguments else (None, None)
    if not isinstance(request, GenerateRequest):
        return None
    if request.messages is None:
        shared: Any = (request.prompt or "")[:PROMPT_CHARS]
    else:
        first = next((place for place, message in enumerate(request.messages) if message["role"] == "user"), len(request.messages))
        shared = list(request.tools), list(request.messages[: first + 1])
    return hashlib.sha256(json.dumps([request.adapter, shared]).encode()).digest()


def ranked(key: bytes, loads: Mapping[str, int]) -> list[str]:
    """Replicas by their ids, the first one to be asked first. `loads`: requests that each has."""
    order = sorted(loads, key=lambda id: hashlib.sha256(key + id.encode()).digest())
    most = math.ceil(OVERLOAD * (sum(loads.values()) + 1) / len(loads))
    return sorted(order, key=lambda id: loads[id] >= most)

"""Generations that begin alike go to one replica, whose prefix cache has that beginning.

Rendezvous hashing (Thaler and Ravishankar, 1998): every gateway ranks the replicas alike without a word to the others, and where one
leaves or comes, only its own requests move. A replica that has more than its share of the work is passed over (Mirrokni, Thorup and
Zadimoghaddam, 2018), so that one popular beginning does not leave the others idle.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, RunningReplica

from raybm.engines.protocol import GenerateRequest
from raybm.serving.parcel import unpacked
from raybm.serving.routing import LeastLoaded

PROMPT_CHARS = 1024  # of a prompt, that count as its beginning
OVERLOAD = 1.25  # times the mean number of requests, that a replica may have before the next in the ranking is asked


class ByPrefix(LeastLoaded):
    def groups(self, pending_request: PendingRequest | None) -> list[list[RunningReplica]]:
        key = None if pending_request is None else beginning(pending_request.args)
        if pending_request is None or key is None:
            return super().groups(pending_request)
        pending_request.routing_context.should_backoff = True  # these are all
        by_id = {replica.replica_id.unique_id: replica for replica in self.curr_replicas.values()}
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

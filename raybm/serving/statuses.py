"""The one table from errors to HTTP statuses, in the shape of OpenAI's API.

Shape: https://platform.openai.com/docs/guides/error-codes; statuses: RFC 9110.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from grpc.aio import AioRpcError
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from raybm.core.errors import (
    DeadlineExceeded,
    EngineDied,
    NotFound,
    Overloaded,
    StorageError,
    TooLong,
    Unsupported,
    UpstreamFailed,
    UserError,
)
from raybm.serving.auth import Unauthenticated
from raybm.serving.limits import BodyTooLarge, BodyTooSlow, HeadersTooLarge, RateLimited, Refused
from raybm.serving.offline.stored import Missing
from raybm.serving.reply import Reply
from raybm.serving.wire import InvalidRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    http: int
    type: str
    code: str
    message: str | None = None  # None: the error's own words
    retry_after_s: float | None = None


CLIENT_LEFT = 499  # nginx's number for a client that left before the answer; nobody receives it
_BUSY = "the model has no room for another request now. Try again."
_GONE = "the replica that worked on this went away. Try again."

LOST = (EngineDied, RayActorError, ReplicaUnavailableError, NodeDiedError, WorkerCrashedError, ObjectLostError, AioRpcError)
"""The replica went away, or the way to it; another may answer. Errors that an engine raises are none of these."""

# The first class that an error is an instance of decides. What is not here is a 500 that tells nothing of our insides.
TABLE: tuple[tuple[type[BaseException], Status], ...] = (
    (Unauthenticated, Status(401, "authentication_error", "invalid_api_key")),
    (RateLimited, Status(429, "rate_limit_error", "rate_limit_exceeded")),
    (BodyTooLarge, Status(413, "invalid_request_error", "body_too_large")),
    (HeadersTooLarge, Status(431, "invalid_request_error", "headers_too_large")),
    (BodyTooSlow, Status(408, "invalid_request_error", "body_too_slow")),
    (Missing, Status(404, "invalid_request_error", "not_found")),
    (NotFound, Status(404, "invalid_request_error", "model_not_found")),
    (Unsupported, Status(400, "invalid_request_error", "unsupported_by_model")),
    (TooLong, Status(400, "invalid_request_error", "context_length_exceeded")),
    (UserError, Status(400, "invalid_request_error", "invalid_request")),
    (Overloaded, Status(503, "server_error", "overloaded", None, 1)),
    (BackPressureError, Status(503, "server_error", "overloaded", _BUSY, 1)),
    (DeploymentUnavailableError, Status(503, "server_error", "model_unavailable", "the model is not running.", 10)),
    *((kind, Status(503, "server_error", "replica_lost", _GONE, 1)) for kind in LOST),
    (ClientDisconnect, Status(CLIENT_LEFT, "invalid_request_error", "client_left", "the client left.")),
    (StorageError, Status(503, "server_error", "storage_unavailable", "the storage of files and batches does not answer. Try again.", 1)),
    (UpstreamFailed, Status(502, "server_error", "upstream_failed")),
    (DeadlineExceeded, Status(504, "server_error", "deadline_exceeded")),
    (TimeoutError, Status(504, "server_error", "deadline_exceeded", "the answer did not come before the request's deadline.")),
)
_INTERNAL = Status(500, "server_error", "internal_error", "something broke on the server; its log says what.")


def cause(error: BaseException) -> BaseException:
    """The error that was raised in a replica, out of Ray's wrapping."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def status(error: BaseException) -> Status:
    if isinstance(error, HTTPException):  # no such path, or the wrong method
        return Status(error.status_code, "invalid_request_error", "no_such_endpoint", str(error.detail))
    return next((found for kind, found in TABLE if isinstance(error, kind)), _INTERNAL)


def body(error: BaseException) -> dict[str, Any]:
    """{"error": {...}} of an error that `cause` has unwrapped. Logs what becomes a 500."""
    found = status(error)
    if found is _INTERNAL:
        logger.error("internal error", exc_info=error)
    param = error.param if isinstance(error, InvalidRequest) else None
    return {"error": {"message": found.message or str(error), "type": found.type, "param": param, "code": found.code}}


def response(error: BaseException) -> Reply:
    error = cause(error)
    found = status(error)
    headers = {}
    wait_s = error.retry_after_s if isinstance(error, Refused) else found.retry_after_s
    if wait_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
    if found.http == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, HTTPException) and error.headers:
        headers.update(error.headers)
    return Reply(body(error), found.http, headers)

"""/v1/batches as OpenAI has it: https://platform.openai.com/docs/api-reference/batch. What runs them is serving/offline/worker.py."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from raybm.core.errors import UserError
from raybm.serving.files import ExpiresAfter, bounded
from raybm.serving.gateway import Gateway
from raybm.serving.offline.record import Batch, Batches, BatchObject, Endpoint
from raybm.serving.offline.stored import Files
from raybm.serving.paging import ERRORS, Listed, Page, body, query
from raybm.serving.reply import Reply
from raybm.serving.wire import read


class NewBatch(BaseModel):
    """POST /v1/batches"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_file_id: str
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None, Field(max_length=16)] = (
        None
    )
    output_expires_after: ExpiresAfter | None = None


class BatchList(Listed):
    data: list[BatchObject]


def routes(gateway: Gateway, files: Files, batches: Batches) -> APIRouter:
    router = APIRouter(responses=ERRORS)

    @router.post("/v1/batches", response_model=BatchObject, openapi_extra=body("application/json", NewBatch.model_json_schema()))
    async def create(request: Request) -> Response:
        """Many requests out of a file, which may take their time."""
        gateway.admit(request)
        spec = gateway.spec
        asked = read(NewBatch, await gateway.limits.body(bounded(request, spec.max_body_bytes, spec.request_timeout_s)))
        tenant, expires = request.state.tenant, asked.output_expires_after

        def created() -> Batch:
            file = files.get(tenant, asked.input_file_id)
            if file.purpose != "batch":
                raise UserError(f"{file.id} has the purpose {file.purpose}.", remedy="Upload a file with the purpose batch.")
            return batches.create(tenant, asked.endpoint, file.id, asked.metadata, expires.seconds if expires else None)

        return Reply((await asyncio.to_thread(created)).wire())

    @router.get("/v1/batches", response_model=BatchList, openapi_extra=query(Page))
    async def listed(request: Request) -> Response:
        """The tenant's batches."""
        gateway.admit(request)
        page = read(Page, dict(request.query_params))

        def found(id: str) -> dict[str, Any]:
            return batches.get(request.state.tenant, id).wire()

        return Reply(await asyncio.to_thread(lambda: page.take(batches.ids(request.state.tenant), found)))

    @router.get("/v1/batches/{id}", response_model=BatchObject)
    async def retrieve(request: Request, id: str) -> Response:
        """How far it is."""
        gateway.admit(request)
        return Reply((await asyncio.to_thread(batches.get, request.state.tenant, id)).wire())

    @router.post("/v1/batches/{id}/cancel", response_model=BatchObject)
    async def cancel(request: Request, id: str) -> Response:
        """It keeps the answers that it has."""
        gateway.admit(request)
        return Reply((await asyncio.to_thread(batches.cancel, request.state.tenant, id)).wire())

    return router

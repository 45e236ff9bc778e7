"""/v1/files as OpenAI has it, for the inputs and outputs of batches: https://platform.openai.com/docs/api-reference/files"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from raybm.core.errors import Overloaded, UserError
from raybm.serving.gateway import Gateway
from raybm.serving.limits import BYTES_PER_S, BodyTooLarge, BodyTooSlow
from raybm.serving.offline.record import Batches
from raybm.serving.offline.stored import FileObject, Files
from raybm.serving.paging import ERRORS, Listed, Page, body, query
from raybm.serving.reply import Reply
from raybm.serving.sse import Bounded
from raybm.serving.wire import InvalidRequest, read

FIELDS_MAX, FIELD_BYTES = 8, 4096
FORM_BYTES = 65_536  # of a form around its file
COPY_BYTES = 2**20
FILENAME_MAX = 255  # characters


class ExpiresAfter(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]  # OpenAI's bounds: an hour, 30 days


class Upload(BaseModel):
    """A form's fields beside the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    purpose: Literal["batch"]
    expires_after: ExpiresAfter | None = None


class FilePage(Page):
    purpose: str | None = None


class FileList(Listed):
    data: list[FileObject]


class Deleted(BaseModel):
    id: str
    object: Literal["file"]
    deleted: bool


FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "additionalProperties": False,
    "properties": {
        "file": {"type": "string", "format": "binary"},
        **{name: field for name, field in Upload.model_json_schema()["properties"].items() if name != "expires_after"},
        **{f"expires_after[{name}]": field for name, field in ExpiresAfter.model_json_schema()["properties"].items()},
    },
}


def routes(gateway: Gateway, files: Files, batches: Batches) -> APIRouter:
    router = APIRouter(responses=ERRORS)
    going, uploads = Transfers(), ThreadPoolExecutor(Transfers.MAX, "raybm-upload")  # others need the event loop's few threads

    @router.post("/v1/files", response_model=FileObject, openapi_extra=body("multipart/form-data", FORM))
    async def upload(request: Request) -> Response:
        """A file for batches, as multipart/form-data."""
        gateway.admit(request)
        bound = bounded(request, gateway.spec.max_file_bytes + FORM_BYTES, gateway.spec.request_timeout_s)
        try:
            async with going.one(), bound.form(max_files=1, max_fields=FIELDS_MAX, max_part_size=FIELD_BYTES) as form:
                file = form.get("file")
                if not isinstance(file, UploadFile):
                    raise InvalidRequest("file: a form (multipart/form-data) with a file of this name is needed.", param="file")
                fields = read(Upload, _nested({name: value for name, value in form.multi_items() if name != "file"}))
                if (file.size or 0) > gateway.spec.max_file_bytes:
                    raise _too_large(gateway.spec.max_file_bytes)
                seconds = fields.expires_after.seconds if fields.expires_after else None
                chunks, name = iter(lambda: file.file.read(COPY_BYTES), b""), _filename(file.filename)
                add = partial(files.add, request.state.tenant, chunks, name, fields.purpose, expires_after_s=seconds)
                stored = await asyncio.get_running_loop().run_in_executor(uploads, add)
        except (MultiPartException, HTTPException):
            raise InvalidRequest("the form cannot be read.", remedy="Send multipart/form-data with the fields file and purpose.") from None
        return Reply(stored.wire())

    @router.get("/v1/files", response_model=FileList, openapi_extra=query(FilePage))
    async def listed(request: Request) -> Response:
        """The tenant's files."""
        gateway.admit(request)
        page = read(FilePage, dict(request.query_params))

        def found(id: str) -> dict[str, Any] | None:
            file = files.get(request.state.tenant, id)
            return file.wire() if page.purpose in (None, file.purpose) else None

        return Reply(await asyncio.to_thread(lambda: page.take(files.ids(request.state.tenant), found)))

    @router.get("/v1/files/{id}", response_model=FileObject)
    async def retrieve(request: Request, id: str) -> Response:
        """What is known of a file."""
        gateway.admit(request)
        return Reply((await asyncio.to_thread(files.get, request.state.tenant, id)).wire())

    @router.get("/v1/files/{id}/content", response_class=Response, responses={200: {"content": {"application/octet-stream": {}}}})
    async def content(request: Request, id: str) -> Response:
        """The file itself."""
        gateway.admit(request)
        file = await asyncio.to_thread(files.get, request.state.tenant, id)
        headers = {"Content-Length": str(file.bytes), "X-Content-Type-Options": "nosniff"}
        deadline = asyncio.get_running_loop().time() + gateway.spec.request_timeout_s + file.bytes / BYTES_PER_S
        chunks = files.content(request.state.tenant, file)
        return Sent(going, chunks, deadline, media_type="application/octet-stream", headers=headers)

    @router.delete("/v1/files/{id}", response_model=Deleted)
    async def delete(request: Request, id: str) -> Response:
        """Refused while a batch reads it."""
        gateway.admit(request)

        def unless_in_use() -> None:
            for key in batches.active():
                batch = batches.of(key)
                if batch and batch.tenant == request.state.tenant and batch.input_file_id == id:
                    raise UserError(f"{batch.id} reads this file.", remedy="Cancel that batch first, or wait for its end.")
            files.delete(request.state.tenant, id)

        await asyncio.to_thread(unless_in_use)
        return Reply({"id": id, "object": "file", "deleted": True})

    return router


class Transfers:
    """Files that come and go; each may take its time, and holds a place of the gateway's that models' requests need, too."""

    MAX = 32

    def __init__(self) -> None:
        self.count = 0

    def begin(self) -> None:
        """Raises Overloaded."""
        if self.count >= self.MAX:
            raise Overloaded(f"{self.MAX} files are on their way already.", remedy="Try again later.")
        self.count += 1

    def end(self) -> None:
        self.count -= 1

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Raises Overloaded."""
        self.begin()
        try:
            yield
        finally:
            self.end()


class Sent(Bounded):
    """A file on its way to a client. Raises Overloaded."""

    def __init__(self, going: Transfers, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        going.begin()
        self._going = going

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._going.end()


def bounded(request: Request, max_bytes: int, timeout_s: float) -> Request:
    """The request, with a body that ends with an error where it is too long. A large file may take its time, at BYTES_PER_S; a client that
    is stuck may not."""
    clock, seen = asyncio.get_running_loop().time, 0
    began = clock()

    async def receive() -> Message:
        nonlocal seen
        try:
            async with asyncio.timeout_at(min(clock(), began + seen / BYTES_PER_S) + timeout_s):
                message: Message = await request.receive()
        except TimeoutError:
            raise BodyTooSlow(
                f"nothing of the file came for {timeout_s:g} s, or less than {BYTES_PER_S / 1000:g} kB/s.", remedy="Send it faster."
            ) from None
        seen += len(message.get("body", b""))
        if seen > max_bytes:
            raise _too_large(max_bytes)
        return message

    return Request(request.scope, receive)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the file has more than {max_bytes} bytes.", remedy="Split it.")


def _nested(fields: dict[str, Any]) -> dict[str, Any]:
    """{"a[b]": c} → {"a": {"b": c}}, as clients write it in forms."""
    nested: dict[str, Any] = {}
    for name, value in fields.items():
        outer, bracket, inner = name.partition("[")
        if bracket:
            before = nested.get(outer)
            nested[outer] = {**(before if isinstance(before, dict) else {}), inner.rstrip("]"): value}
        else:
            nested[outer] = value
    return nested


def _filename(given: str | None) -> str:
    """What may be shown: the last part of a path, without what cannot be printed."""
    last = (given or "").replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:FILENAME_MAX] or "file.jsonl"

"""Storage in an S3 bucket, or in anything that speaks S3 with conditional writes (AWS, SeaweedFS, MinIO, R2, ...).

Credentials come from the usual places (AWS_* environment, ~/.aws, instance roles) at the time of the call and are never kept;
the endpoint is AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, and travels with the object, so that a worker finds the same server.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)

from raybm.core.errors import Conflict, NotFound, StorageError, UserError
from raybm.core.storage import COPY_THREADS, appearing, check_key, files_under, in_parallel, local_errors

if TYPE_CHECKING:
    import pyarrow.fs

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60  # of silence
ATTEMPTS = 4
LISTED = 1000  # S3's page, and the most keys of one delete
TRANSFER = TransferConfig(multipart_threshold=16 * 2**20, multipart_chunksize=16 * 2**20, max_concurrency=4, num_download_attempts=ATTEMPTS)
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "403"}
GONE = {"NoSuchKey", "404"}
LOST = {"PreconditionFailed", "ConditionalRequestConflict", "412"}


def open_s3(rest: str) -> S3Storage:
    """From what stands after `s3://`. Raises UserError."""
    bucket, _, prefix = rest.partition("/")
    if not bucket or "?" in rest:
        raise UserError(
            f"'s3://{rest}' is no storage.",
            where="storage",
            remedy="Use s3://bucket/prefix, and AWS_ENDPOINT_URL_S3 for the server's address.",
        )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and not urlsplit(endpoint).netloc:
        raise UserError(f"{endpoint!r} is no URL.", where="AWS_ENDPOINT_URL_S3", remedy="Give it as http://host:port or https://host.")
    return S3Storage(bucket, check_key(prefix.strip("/"), empty=True), endpoint, region)


@functools.lru_cache(maxsize=8)
def _client(process: int, endpoint: str | None, region: str | None, credentials: tuple[str | None, ...]) -> Any:
    """One client (thread-safe, with its pool) a process and set of credentials; a forked child must not share sockets."""
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=COPY_THREADS * TRANSFER.max_concurrency,
        s3={"addressing_style": "path" if endpoint else "auto"},  # host:port has no sub-domains
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)


@dataclass(frozen=True)
class S3Storage:
    """A prefix of a bucket."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def at(self, prefix: str) -> S3Storage:
        return S3Storage(self.bucket, self._key(prefix, empty=True), self.endpoint, self.region)

    def read(self, key: str) -> bytes:
        return self.read_tagged(key)[0]

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        with self._errors(key):
            answer = self._s3.get_object(Bucket=self.bucket, Key=self._key(key))
            return answer["Body"].read(), answer["ETag"]

    def write(self, key: str, data: bytes) -> None:
        with self._errors(key):
            self._s3.put_object(Bucket=self.bucket, Key=self._key(key), Body=data)

    def create(self, key: str, data: bytes) -> None:
        self._put_if(key, data, IfNoneMatch="*")

    def replace(self, key: str, data: bytes, tag: str) -> None:
        self._put_if(key, data, IfMatch=tag)

    def exists(self, key: str) -> bool:
        full = self._key(key)
        with self._errors(key):  # a listing and not HEAD, whose bare 404 does not tell a missing bucket from a missing key
            found = self._s3.list_objects_v2(Bucket=self.bucket, Prefix=full, MaxKeys=1).get("Contents", [])
        return any(item["Key"] == full for item in found)  # the key itself sorts before those that it begins

    def keys(self, prefix: str = "") -> list[str]:
        return [key for key, _ in self._files(prefix)]

    def folders(self, prefix: str = "") -> list[str]:
        under = self._under(prefix)
        with self._errors(prefix):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=under, Delimiter="/")
            return sorted(item["Prefix"][len(under) : -1] for page in pages for item in page.get("CommonPrefixes", []))

    def size(self, prefix: str = "") -> int:
        return sum(size for _, size in self._files(prefix))

    def delete(self, prefix: str) -> None:
        keys = [self._key(key) for key in self.keys(prefix)]
        for start in range(0, len(keys), LISTED):
            with self._errors(prefix):
                objects = [{"Key": key} for key in keys[start : start + LISTED]]
                answer = self._s3.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
            for error in answer.get("Errors", []):
                raise StorageError(
                    f"S3 did not delete it ({error.get('Code')}).", where=f"s3://{self.bucket}/{error.get('Key')}", remedy=self._denied
                )

    def upload(self, folder: Path, prefix: str = "") -> None:
        def put(name: str) -> None:
            key = f"{prefix}/{name}" if prefix else name
            with local_errors(str(folder / name)), self._errors(key), (folder / name).open("rb") as file:
                self._s3.upload_fileobj(file, self.bucket, self._key(key), Config=TRANSFER)

        in_parallel(put, files_under(folder))

    def download(self, prefix: str, folder: Path) -> None:
        under = f"{prefix}/" if prefix else ""
        names = [key.removeprefix(under) for key in self.keys(prefix) if key.startswith(under)]
        if not names:
            raise NotFound("there are no files.", where=self.at(prefix).uri if prefix else self.uri)

        def get(name: str) -> None:
            (temp / name).parent.mkdir(parents=True, exist_ok=True)
            with self._errors(under + name):
                self._s3.download_file(self.bucket, self._key(under + name), str(temp / name), Config=TRANSFER)

        with local_errors(str(folder)), appearing(folder) as temp:
            in_parallel(get, names)

    def local(self, prefix: str = "") -> Path | None:
        return None

    def arrow(self, prefix: str = "") -> tuple[pyarrow.fs.FileSystem, str]:
        """Holds the address and takes the credentials from the process that it is used in."""
        import pyarrow.fs

        address: dict[str, Any] = {"region": self.region}
        if self.endpoint:
            parts = urlsplit(self.endpoint)
            address = {"region": self.region or "us-east-1", "endpoint_override": parts.netloc, "scheme": parts.scheme}
        elif not self.region:
            try:
                address["region"] = pyarrow.fs.resolve_s3_region(self.bucket)
            except OSError as error:
                raise StorageError(f"the bucket's region is not to be found: {error}", where=self.uri, remedy="Set AWS_REGION.") from None
        retries = pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
        system = pyarrow.fs.S3FileSystem(
            connect_timeout=CONNECT_TIMEOUT_S, request_timeout=READ_TIMEOUT_S, retry_strategy=retries, **address
        )
        return system, f"{self.bucket}/{self._key(prefix, empty=True)}".rstrip("/")

    @property
    def _s3(self) -> Any:
        region = self.region or ("us-east-1" if self.endpoint else None)
        return _client(os.getpid(), self.endpoint, region, tuple(os.environ.get(name) for name in CREDENTIALS))

    def _key(self, key: str, empty: bool = False) -> str:
        check_key(key, empty)
        return f"{self.prefix}/{key}".strip("/") if self.prefix else key

    def _under(self, prefix: str) -> str:
        full = self._key(prefix, empty=True)
        return f"{full}/" if full else ""

    def _files(self, prefix: str) -> list[tuple[str, int]]:
        """(key relative to this storage, bytes), sorted; `prefix` may be the key of one file."""
        under, own = self._under(prefix), len(self._under(""))
        with self._errors(prefix):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=under)
            found = [
                (item["Key"][own:], int(item["Size"]))
                for page in pages
                for item in page.get("Contents", [])
                if not item["Key"].endswith("/")
            ]
            if not found and prefix:
                same = self._s3.list_objects_v2(Bucket=self.bucket, Prefix=under[:-1], MaxKeys=1).get("Contents", [])
                found = [(prefix, int(item["Size"])) for item in same if item["Key"] == under[:-1]]
        return sorted(found)

    def _put_if(self, key: str, data: bytes, **condition: str) -> None:
        try:
            with self._errors(key):
                try:
                    self._s3.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, **condition)
                except ClientError as error:
                    # A request sent again because its answer was lost meets its own first try: then our data is there.
                    again = _code(error) in LOST and error.response["ResponseMetadata"].get("RetryAttempts")
                    if not again or self.read(key) != data:
                        raise
        except NotFound:  # If-Match on a key that was deleted
            raise Conflict("somebody else deleted it meanwhile.", where=f"{self.uri}/{key}") from None

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """botocore's errors → ours, with the bucket, the server and what to do."""
        where = f"{self.uri}/{key}".rstrip("/")
        server = self.endpoint or "AWS"
        try:
            yield
        except ClientError as error:
            code, message = _code(error), error.response["Error"].get("Message")
            if code in LOST:
                raise Conflict("somebody else wrote it first.", where=where) from None
            if code in GONE:
                raise NotFound("there is no such object.", where=where) from None
            if code == "NoSuchBucket":
                remedy = f"Create it (`aws s3 mb s3://{self.bucket}`), or correct `storage:` or AWS_ENDPOINT_URL_S3."
                raise StorageError(f"{server} has no bucket {self.bucket!r}.", where=where, remedy=remedy) from None
            if code in DENIED or error.response["ResponseMetadata"].get("HTTPStatusCode") == 403:
                raise StorageError(f"{server} denied access ({code}).", where=where, remedy=self._denied) from None
            raise StorageError(
                f"{server} answered {code}: {message}.".replace("..", "."), where=where, remedy="See the server's log."
            ) from error
        except (NoCredentialsError, PartialCredentialsError, TokenRetrievalError) as error:
            raise StorageError(f"no usable credentials: {error}.".replace("..", "."), where=where, remedy=self._denied) from None
        except (ConnectionError, HTTPClientError, Boto3Error) as error:  # the last: a transfer cut off in mid-body, too often
            remedy = "Check that it runs and is reachable from here (AWS_ENDPOINT_URL_S3); then give the same command again, it continues."
            raise StorageError(
                f"{server} cannot be reached ({type(error).__name__}, {ATTEMPTS} attempts).", where=where, remedy=remedy
            ) from error
        except BotoCoreError as error:
            raise StorageError(f"{server}: {error}", where=where, remedy="Check the AWS_* environment variables.") from error

    @property
    def _denied(self) -> str:
        return (
            f"Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a role) that may list, read, write and delete in bucket {self.bucket!r}."
        )


def _code(error: ClientError) -> str:
    return str(error.response["Error"].get("Code"))

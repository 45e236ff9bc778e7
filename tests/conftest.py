"""Fixtures that start something once a session: of several processes (pytest -n), in each that needs it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import boto3
import pytest

from raybm.cluster import connect
from raybm.serving import ingress
from raybm.spec.serve import HttpOptions
from tests.ranks import Ranks
from tests.s3server import start_weed, stop_weed

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts the tests in the background lets it be ignored


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Two processes with a gloo group between them."""
    group = Ranks(2)
    yield group
    group.close()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The storage URI of an empty bucket on a real S3 server; AWS_* stand in the environment for as long as the session lasts."""
    endpoint, (key, secret), process = start_weed(tmp_path_factory.mktemp("weed"))
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("AWS_ENDPOINT_URL_S3", endpoint)
            environment.setenv("AWS_ACCESS_KEY_ID", key)
            environment.setenv("AWS_SECRET_ACCESS_KEY", secret)
            environment.setenv("AWS_REGION", "us-east-1")
            boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="raybm-test")
            yield "s3://raybm-test"
    finally:
        stop_weed(process)


@pytest.fixture(scope="session")
def ray_session(s3: str) -> Iterator[str]:
    """One Ray for the whole session, with 4 logical CPUs and the ingress that `raybm deploy` takes; its workers have the S3 server's
    credentials. Its address."""
    http = HttpOptions(host="127.0.0.1")
    with ingress.chosen(http, embedded=True) as entrance, connect(cpus=4, say=print, dashboard=True, variables=entrance.variables) as ray:
        yield ray.address

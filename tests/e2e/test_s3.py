"""A whole job with everything on a real S3 server, and what happens when the server is not what it should be."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import boto3
import pytest

from raybm.cli.driver import drive
from raybm.core import spec as specs
from raybm.core.errors import StorageError
from raybm.core.registry import Registry
from raybm.core.runs import states
from raybm.core.storage import open_storage
from raybm.models.references import resolve
from raybm.predict import predict
from raybm.spec import JobSpec
from raybm.sweep.past import Past
from tests.e2e import job
from tests.s3server import start_weed, stop_weed

pytestmark = pytest.mark.integration


def test_the_whole_job_and_again(s3: str, ray_session: str, tmp_path: Path) -> None:
    uri = f"{s3}/{uuid.uuid4().hex}"
    spec = specs.load(JobSpec, job.write_spec(tmp_path, uri, publish={"alias": "prod", "gate": {"perplexity": "< 100000"}}))
    first = drive(spec, None)
    storage = open_storage(uri)
    assert list(first) == ["prepare", "train", "evaluate", "publish"]
    assert job.evaluation(storage)["test"]["loss"] == pytest.approx(first["evaluate"].metrics["loss"])
    assert Registry(storage).verify("tiny", "prod") == []
    assert (resolve("registry:tiny@prod", storage) / "model.safetensors").exists()
    run = states(storage)[0].run
    assert {"log.txt", "metrics.jsonl", "report.html", "state.json"} <= {key.rsplit("/", 1)[1] for key in storage.keys(f"runs/{run}")}
    assert drive(spec, None) == first  # nothing is made again
    assert Registry(storage).versions("tiny") == [1]
    storage.write("new/rows.jsonl", b'{"prompt": "th"}\n{"prompt": "a"}\n')
    assert predict("registry:tiny@prod", f"{uri}/new/rows.jsonl", tmp_path / "out.jsonl", storage, max_tokens=3) == 2


def test_a_sweep(s3: str, ray_session: str, tmp_path: Path) -> None:
    uri = f"{s3}/{uuid.uuid4().hex}"
    sweep = {"space": {"train.lr": [1e-3, 1e-2]}, "sampler": {"kind": "grid"}}
    train = {"max_steps": 6, "validate_every_steps": 3, "global_batch": 8, "zero": {"stage": 0}}
    settings: dict[str, Any] = {"resources": {"workers": 1}, "train": train, "evaluate": None, "publish": None, "sweep": sweep}
    records = drive(specs.load(JobSpec, job.write_spec(tmp_path, uri, **settings)), None)
    storage = open_storage(uri)
    past = Past(storage, states(storage)[0].run)
    assert [trial.end for trial in past.trials] == ["finished"] * 2 and past.best().values == {
        "train.lr": records["train"].view["train"]["lr"]
    }
    assert {"sweep.csv", "sweep.html", "report.html"} <= {key.rsplit("/", 1)[1] for key in storage.keys(f"runs/{past.run}")}


def test_wrong_credentials_and_missing_bucket(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = specs.load(JobSpec, job.write_spec(tmp_path, "s3://no-such-bucket-here/x"))
    with pytest.raises(StorageError, match="no-such-bucket-here"):
        drive(missing, None)
    spec = specs.load(JobSpec, job.write_spec(tmp_path, s3))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match=r"(?i)credential|key|denied"):
        drive(spec, None)


def test_a_server_that_goes_away_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def up() -> Any:
        endpoint, (key, secret), server = start_weed(tmp_path / "weed")
        for name, value in (("ENDPOINT_URL_S3", endpoint), ("ACCESS_KEY_ID", key), ("SECRET_ACCESS_KEY", secret), ("REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        return endpoint, server

    endpoint, server = up()
    try:
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="gone")
        spec = job.write_spec(tmp_path, "s3://gone/jobs")
        with job.start(spec) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("train: starts"):
                    break
            stop_weed(server)
            code, output = job.finish(process)
        assert code == StorageError.exit_code, output
        assert endpoint in output
        assert "Traceback" not in output
        _, server = up()
        with job.start(spec) as process:
            code, output = job.finish(process)
        assert code == 0, output
        assert "prepare: done already" in output
        assert Registry(open_storage("s3://gone/jobs")).versions("tiny") == [1]
    finally:
        stop_weed(server)

"""The OpenAPI document, held against the gateway by schemathesis. As a command: its import takes seconds of every run of the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from raybm.core.storage import open_storage
from tests.fakes import EchoEngine, LengthClassifier, LocalModel, PictureClassifier
from tests.listening import listening
from tests.serving.house import House

MODELS = {"chat": LocalModel(EchoEngine()), "size": LocalModel(LengthClassifier()), "pictures": LocalModel(PictureClassifier())}
ASKED = ("--phases=examples,coverage,fuzzing", "--max-examples=25", "--seed=1", "--suppress-health-check=all", "--no-color")
LEFT_OUT = "--exclude-checks=positive_data_acceptance"
"""A body may be right and ask a model for what it cannot do."""


@pytest.mark.integration
def test_what_the_document_says_is_what_the_gateway_does(tmp_path: Path) -> None:
    with listening(House(open_storage(str(tmp_path / "files")), MODELS, api_keys=[], max_inputs=4).app) as url:
        document = httpx.get(f"{url}/openapi.json").json()
        for schema in document["components"]["schemas"].values():
            if "model" in schema.get("properties", {}):
                schema["properties"]["model"] = {"enum": list(MODELS)}  # nobody finds their names by chance
        (tmp_path / "openapi.json").write_text(json.dumps(document))
        command = [Path(sys.executable).with_name("st"), "run", tmp_path / "openapi.json", "--url", url, *ASKED, LEFT_OUT]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr

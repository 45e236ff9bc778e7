"""The OpenAPI document, held against the gateway by schemathesis."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import positive_data_acceptance
from schemathesis.generation.case import Case

from raybm.core.storage import open_storage
from tests.fakes import EchoEngine, LengthClassifier, LocalModel, PictureClassifier
from tests.serving.house import House
from tests.serving.test_gateway import ask

pytestmark = pytest.mark.integration

MODELS = {"chat": LocalModel(EchoEngine()), "size": LocalModel(LengthClassifier()), "pictures": LocalModel(PictureClassifier())}
FILES = tempfile.TemporaryDirectory(prefix="raybm-test-")
APP = House(open_storage(FILES.name), MODELS, api_keys=[], max_inputs=4).app


def document() -> dict[str, Any]:
    """With models that there are, since nobody finds their names by chance."""
    made: dict[str, Any] = ask(APP, "GET", "/openapi.json").json()
    for schema in made["components"]["schemas"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"enum": list(MODELS)}
    return made


API = schemathesis.openapi.from_dict(document())
API.app = APP


@API.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_what_the_document_says_is_what_the_gateway_does(case: Case) -> None:
    """`positive_data_acceptance` is left out: a body may be right and ask a model for what it cannot do."""
    case.call_and_validate(excluded_checks=[positive_data_acceptance])

"""What the gateway refuses, and how errors are told."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from raybm.core.errors import Unsupported
from tests.fakes import LocalModel
from tests.serving.gateway import DIGEST, KEY, ask, chat, chunks, make_app, refusal


class Failing(LocalModel):
    """Raises what it is given."""

    async def complete(self, request: Any) -> Any:
        raise self.engine

    async def predict(self, rows: Any) -> Any:
        raise self.engine


def test_failure_in_mid_stream_is_an_error_event_without_internals() -> None:
    response = ask(make_app(), "POST", "/v1/chat/completions", json=chat("!broken word", stream=True))
    *_, last = chunks(response)
    assert last["error"]["code"] == "internal_error" and "secret" not in response.text


def test_deadline_in_mid_stream_and_before() -> None:
    app = make_app(request_timeout_s=0.2)
    *_, last = chunks(ask(app, "POST", "/v1/chat/completions", json=chat("!slow", stream=True)))
    assert last["error"]["code"] == "deadline_exceeded"
    for stream in (True, False):
        refusal(ask(app, "POST", "/v1/chat/completions", json=chat("!stuck", stream=stream)), 504, "deadline_exceeded")


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("n", 17),
        ("logprobs", 1),
        ("response_format", {"type": "xml"}),
        ("logit_bias", {"1": 5}),
        ("frequency_penalty", 3),
        ("seed", "7"),
        ("echo", True),
        ("temperture", 1),
        ("temperature", 9),
        ("stop", ""),
        ("messages", [{"role": "tool", "content": "x"}]),
    ],
)
def test_parameters_that_change_meaning_are_refused_by_name(parameter: str, value: Any) -> None:
    error = refusal(ask(make_app(), "POST", "/v1/chat/completions", json=chat("x", **{parameter: value})), 400, "invalid_request")
    assert error["param"] == parameter and parameter in error["message"]
    assert f"{parameter}: {parameter}" not in error["message"]


@pytest.mark.parametrize("key", ["x" * 10_000, "<script>"])
def test_an_unknown_key_is_not_repeated_unless_it_is_a_name(key: str) -> None:
    error = refusal(ask(make_app(), "POST", "/v1/chat/completions", json=chat("x", **{key: 1})), 400, "invalid_request")
    assert error["param"] is None and key not in error["message"] and error["message"].startswith("a key: is not supported")


def test_harmless_and_neutral_parameters_are_accepted() -> None:
    more = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "n": 1,
        "logprobs": False,
        "tools": None,
        "response_format": {"type": "text"},
        "presence_penalty": 0,
    }
    assert ask(make_app(), "POST", "/v1/chat/completions", json=chat("x", **more)).status_code == 200


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"model": "chat"}', b'{"model": "chat", "messages": [{"role": "user", "content": "\\ud800"}]}', b"\xff"]
)
def test_bad_bodies_are_400(body: bytes) -> None:
    refusal(ask(make_app(), "POST", "/v1/chat/completions", content=body), 400, "invalid_request")


def test_unknown_model_path_and_method() -> None:
    app = make_app()
    error = refusal(ask(app, "POST", "/v1/classify", json={"model": "nope", "input": "x"}), 404, "model_not_found")
    assert "chat, size" in error["message"]
    refusal(ask(app, "GET", "/v1/models/nope"), 404, "model_not_found")
    refusal(ask(app, "GET", "/v2"), 404, "no_such_endpoint")
    assert ask(app, "GET", "/v1/classify").headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (Unsupported("no chat.", remedy="It answers /v1/classify."), 400, "unsupported_by_model", None),
        (BackPressureError(3, 2), 503, "overloaded", "1"),
        (RayActorError(), 503, "replica_lost", "1"),
        (KeyError("secret"), 500, "internal_error", None),
    ],
)
def test_errors_of_models_have_their_status(error: Exception, status: int, code: str, retry: str | None) -> None:
    response = ask(make_app(models={"m": Failing(error)}), "POST", "/v1/classify", json={"model": "m", "input": "x"})
    assert "secret" not in refusal(response, status, code)["message"]
    assert response.headers.get("retry-after") == retry


@pytest.mark.parametrize("stream", [True, False])
def test_errors_before_the_first_token_have_their_status(stream: bool) -> None:
    app = make_app()
    refusal(ask(app, "POST", "/v1/chat/completions", json=chat("!full", stream=stream)), 503, "overloaded")
    refusal(ask(app, "POST", "/v1/chat/completions", json=chat("!long", stream=stream)), 400, "invalid_request")
    refusal(ask(app, "POST", "/v1/chat/completions", json=chat("!bug", stream=stream)), 500, "internal_error")


def test_keys_tenants_and_limits(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(api_keys=[{"tenant": "acme", "sha256": DIGEST, "requests_per_minute": 3}], max_body_bytes=200, max_inputs=2)
    for wrong in (None, "rb-wrong"):
        response = ask(app, "GET", "/v1/models", key=wrong)
        refusal(response, 401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    with caplog.at_level(logging.INFO, "raybm"):
        assert ask(app, "POST", "/v1/classify", key=KEY, json={"model": "size", "input": "private words"}).status_code == 200
    refusal(ask(app, "POST", "/v1/classify", key=KEY, json={"model": "size", "input": ["a"] * 3}), 400, "invalid_request")
    refusal(ask(app, "POST", "/v1/classify", key=KEY, content=b"x" * 201), 413, "body_too_large")
    response = ask(app, "POST", "/v1/classify", key=KEY, json={"model": "size", "input": "a"})
    refusal(response, 429, "rate_limit_exceeded")
    assert 0 < int(response.headers["retry-after"]) <= 60
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("raybm")]
    assert line.startswith("POST /v1/classify model=size tenant=acme status=200 ms=")
    assert KEY not in line and "private" not in line


def test_chunked_body_stops_at_the_limit() -> None:
    async def forever() -> Any:
        while True:
            yield b"x" * 100

    refusal(ask(make_app(max_body_bytes=1000), "POST", "/v1/classify", content=forever()), 413, "body_too_large")

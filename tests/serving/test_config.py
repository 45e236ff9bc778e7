"""serve_configs/: what is refused, what is rendered, and that Ray Serve takes the same files."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from raybm.core.errors import NotFound, SpecError, UserError
from raybm.core.registry import Registry
from raybm.core.spec import load
from raybm.core.storage import open_storage
from raybm.serving.app import build
from raybm.serving.auth import Keys, new_api_key
from raybm.serving.deploy import _check_free, _error, check_models, deploy, needs
from raybm.serving.limits import Limits, RateLimited
from raybm.serving.render import render
from raybm.spec import ServeConfig
from raybm.spec.serve import ApiKey, GatewaySpec, HttpOptions

FILES = sorted((Path(__file__).parents[2] / "serve_configs").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shipped_files_are_valid_for_both_readers(path: Path) -> None:
    config = load(ServeConfig, path)
    assert needs(config)[0] >= 1
    document = yaml.safe_load(path.read_text())
    ServeDeploySchema.model_validate(document)
    build(document["applications"][0]["args"])


def test_mistakes_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("""\
http_options: {port: 8000}
applications:
  - import_path: raybm.serving.app:bild
    args:
      models:
        - name: gateway
          ref: package:x
          autoscaling: {min_replicas: 3, max_replicas: 2}
        - name: chat
          ref: package:x
          max_ongoing_request: 3
""")
    with pytest.raises(SpecError) as caught:
        load(ServeConfig, path)
    problems = {problem.path: problem for problem in caught.value.problems}
    model = "applications[0].args.models"
    expected = {
        "http_options.host",
        "applications[0].import_path",
        f"{model}[0].autoscaling.min_replicas",
        f"{model}[1].max_ongoing_request",
    }
    assert expected <= set(problems)
    assert problems[f"{model}[1].max_ongoing_request"].line == 11
    for name in ("gateway", "batches"):
        with pytest.raises(SpecError, match="gateway's own name"):
            build({"models": [{"name": name, "ref": "package:x"}]})


def test_what_must_be_unique() -> None:
    def problems(**changes: Any) -> set[tuple[str, str]]:
        gateway = {"api_keys": [{"tenant": tenant, "sha256": digest * 64, **limit} for tenant, digest, limit in changes.get("keys", ())]}
        args = {"models": [{"name": "m", "ref": "package:x"}], "gateway": gateway}
        apps = [{"name": n, "route_prefix": r, "import_path": "raybm.serving.app:build", "args": args} for n, r in changes["apps"]]
        try:
            ServeConfig.parse({"http_options": {"host": "127.0.0.1"}, "applications": apps})
        except SpecError as error:
            return {(problem.path, problem.what) for problem in error.problems}
        return set()

    assert not problems(apps=[("a", "/"), ("b", "/b")], keys=[("t", "0", {}), ("t", "1", {}), ("u", "2", {"requests_per_minute": 1})])
    assert problems(apps=[("a", "/"), ("a", "/a")]) == {("applications", "two applications have the same name.")}
    assert problems(apps=[("a", "/a"), ("b", "/a")]) == {("applications", "two applications have the same route_prefix.")}
    assert {path for path, _ in problems(apps=[("a", "/a/")])} == {"applications[0].route_prefix"}
    keys = "applications[0].args.gateway.api_keys"
    assert problems(apps=[("a", "/")], keys=[("t", "0", {}), ("u", "0", {})]) == {(keys, "a key is listed twice.")}
    ((path, what),) = problems(apps=[("a", "/")], keys=[("t", "0", {"requests_per_minute": 5}), ("t", "1", {})])
    assert path == keys and "requests_per_minute" in what


def test_render_pins_aliases(tmp_path: Path) -> None:
    storage = str(tmp_path / "storage")
    registry = Registry(open_storage(storage))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for _ in range(2):
        registry.publish("sentiment", tmp_path / "model", {})
    registry.promote("sentiment", "prod", 2, None)
    text = render(["sentiment@prod", "hub:org/chat.x@abc"], storage)
    assert "ref: registry:sentiment@2  # prod, when this was written" in text
    models = yaml.safe_load(text)["applications"][0]["args"]["models"]
    assert [(m["name"], m["ref"]) for m in models] == [("sentiment", "registry:sentiment@2"), ("chat.x", "hub:org/chat.x@abc")]
    with pytest.raises(UserError, match="which version"):
        render(["sentiment"], storage)
    with pytest.raises(NotFound):
        render(["sentiment@nowhere"], storage)
    with pytest.raises(UserError, match="two models"):
        render(["sentiment@1", "sentiment@2"], storage)


def test_missing_model_is_told_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    models = [{"name": "m", "ref": "registry:nothing@prod"}]
    application = {"import_path": "raybm.serving.app:build", "args": {"storage": str(tmp_path), "models": models}}
    path.write_text(yaml.safe_dump({"http_options": {"host": "127.0.0.1"}, "applications": [application]}))
    with pytest.raises(NotFound, match="nothing"):
        check_models(load(ServeConfig, path), print)


def test_port_in_use_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as Serve's proxies do
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="cannot be used"):
            _check_free(HttpOptions(host="127.0.0.1", port=port))
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr("ray.is_initialized", lambda: False)
        application = {"import_path": "raybm.serving.app:build", "args": {"models": [{"name": "m", "ref": "file:/none"}]}}
        (tmp_path / "serve.yaml").write_text(
            yaml.safe_dump({"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]})
        )
        with pytest.raises(UserError, match="cannot be used"):  # before the model is looked for and Ray is started
            deploy(tmp_path / "serve.yaml", connect=lambda **settings: pytest.fail("Ray was started"), say=print)


def test_reason_out_of_a_traceback() -> None:
    message = "The deployment failed. Error:\nray::X()\n  File 'x'\nRuntimeError: Tr\nraybm.core.errors.NotFound: m@prod: there is none.\n"
    assert _error(message) == "m@prod: there is none."
    assert _error("ray::X()\n  File 'x'\nValueError: too small\n") == "ValueError: too small"
    assert _error("ray::X()\nray.serve.exceptions.RayServeException: Prefix / is being used.") == "Prefix / is being used."
    assert _error("") == ""


def test_keys() -> None:
    key, digest = new_api_key()
    assert digest == hashlib.sha256(key.encode()).hexdigest() and new_api_key()[0] != key
    keys = Keys((ApiKey(tenant="other", sha256="0" * 64), ApiKey(tenant="acme", sha256=digest)))
    assert keys.tenant(f"bearer  {key}") == "acme"
    assert Keys(()).tenant(None) == "anonymous"


def test_requests_of_a_sliding_minute() -> None:
    now = [100.0]
    limits = Limits(GatewaySpec(api_keys=(ApiKey(tenant="acme", sha256="0" * 64, requests_per_minute=2),)), lambda: now[0])
    limits.admit("acme")
    now[0] += 20
    limits.admit("acme")
    with pytest.raises(RateLimited) as caught:
        limits.admit("acme")
    assert caught.value.retry_after_s == pytest.approx(40)
    now[0] += 40
    limits.admit("acme")
    args: Any = ["nobody with a limit"]
    for _ in range(100):
        limits.admit(*args)

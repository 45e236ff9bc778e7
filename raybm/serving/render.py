"""From model names to a serve_configs/ file, commented, and validated by the classes that will read it."""

from __future__ import annotations

import re

import yaml

from raybm.core import yamlfile
from raybm.core.errors import UserError
from raybm.core.registry import Registry
from raybm.core.spec import parse
from raybm.core.storage import open_storage
from raybm.serving.ingress import haproxy
from raybm.spec.autoscaling import Autoscaling, OngoingRequests
from raybm.spec.serve import GatewaySpec, ServeConfig, ServedModel

HEAD = """\
# Ray Serve config, written by `raybm render`. `raybm deploy FILE` checks it and deploys; plain `serve deploy FILE` takes it too.
proxy_location: EveryNode
http_options:
  host: 127.0.0.1  # only this machine; behind a load balancer 0.0.0.0, and then with api_keys
  port: 8000
  proxy: auto  # {proxy}
applications:
  - name: raybm
    route_prefix: /
    import_path: raybm.serving.app:build
    args:
      storage: {storage}  # where the registry is
      gateway:
        api_keys: []  # `raybm key TENANT` makes one; empty: everybody who reaches the port may ask
        request_timeout_s: {request_timeout_s:g}
      models:
"""
MODEL = """\
        - name: {name}  # the `model` of a request
          ref: {ref}{comment}
          autoscaling:
            min_replicas: {low}  # 0 lets it sleep
            max_replicas: {high}
            by: {{kind: ongoing_requests, target: {target:g}}}  # or queue, tokens_in_flight, ttft
          cpus: {cpus:g}  # of each replica
          gpus: {gpus:g}
"""


def render(refs: list[str], storage: str) -> str:
    """A serve_configs/ file for references; `sentiment@prod` is short for `registry:sentiment@prod`.

    An alias is pinned to the version it points to now, so that the file deploys the same models every time; the comment says which
    alias it was. Raises NotFound, UserError, StorageError, SpecError.
    """
    registry = Registry(open_storage(storage))
    default, scale = ServedModel(name="x", ref="package:x"), Autoscaling()
    blocks, seen = [], set[str]()
    for given in refs:
        ref, comment = _pinned(given, registry)
        name = _name(ref)
        if name in seen:
            raise UserError(f"two models would be called {name!r}.", where=given, remedy="Render one and add the other by hand.")
        seen.add(name)
        fields = {"name": _scalar(name), "ref": _scalar(ref), "comment": f"  # {comment}" if comment else ""}
        blocks.append(
            MODEL.format(
                **fields,
                low=scale.min_replicas,
                high=scale.max_replicas,
                target=OngoingRequests().target,
                cpus=default.cpus,
                gpus=default.gpus,
            )
        )
    here = "as on this machine" if haproxy() else "not on this machine, which will have Serve's own"
    proxy = f"HAProxy where `raybm deploy` starts Ray itself and there is one, {here}"
    text = HEAD.format(proxy=proxy, storage=_scalar(storage), request_timeout_s=GatewaySpec().request_timeout_s) + "".join(blocks)
    data, lines = yamlfile.parse(text, "render")
    parse(ServeConfig, data, "render", lines)
    return text


def _pinned(given: str, registry: Registry) -> tuple[str, str]:
    scheme, colon, rest = given.partition(":")
    if colon and scheme != "registry":
        return given, ""
    name, _, which = (rest if colon else given).partition("@")
    if not which:
        raise UserError("which version?", where=given, remedy=f"Write {name}@prod (an alias) or {name}@1 (a version).")
    version = registry.get(name, which)
    return f"registry:{name}@{version.number}", f"{which}, when this was written" if not which.isdigit() else ""


def _name(ref: str) -> str:
    """hub:org/name@revision → name; file:/a/b → b."""
    last = re.split(r"[/:]", ref.partition("@")[0].rstrip("/"))[-1]
    return re.sub(r"[^A-Za-z0-9._-]", "-", last).strip("-._") or "model"


def _scalar(text: str) -> str:
    """As YAML that both our reader (1.2) and Serve's (1.1) take for this string."""
    plain = re.fullmatch(r"[A-Za-z/~.][\w./~@:+-]*", text) and yaml.safe_load(text) == text
    return text if plain else "'" + text.replace("'", "''") + "'"

"""Validates custom resources as the API server and KubeRay would: structural schemas, unknown fields, CEL rules, upgrade strategies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

CRDS = Path(os.environ.get("RAYBM_K8S_CRDS", Path(__file__).parents[3] / "shared/k8s-crds"))

# The rules that stand in the CRDs, as predicates. Those over `oldSelf` are about updates: nothing to check in a file.
RULES: dict[str, Callable[[Any], bool]] = {
    "self == oldSelf": lambda node: True,
    "self in ['ray.io/kuberay-operator', 'kueue.x-k8s.io/multikueue']": lambda node: (
        node in ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
    ),
    "!((has(self.onSuccess) || has(self.onFailure)) && has(self.deletionRules))": lambda node: (
        not (("onSuccess" in node or "onFailure" in node) and "deletionRules" in node)
    ),
    "((has(self.onSuccess) && has(self.onFailure)) || has(self.deletionRules))": lambda node: (
        ("onSuccess" in node and "onFailure" in node) or "deletionRules" in node
    ),
    "!(has(self.jobStatus) && has(self.jobDeploymentStatus))": lambda node: not ("jobStatus" in node and "jobDeploymentStatus" in node),
    "has(self.jobStatus) || has(self.jobDeploymentStatus)": lambda node: "jobStatus" in node or "jobDeploymentStatus" in node,
}
UPGRADE_STRATEGIES = {
    "RayCluster": {"Recreate", "None"},
    "RayService": {"NewCluster", "NewClusterWithIncrementalUpgrade", "None"},
}


@cache
def schema(kind: str, version: str) -> dict[str, Any]:
    document = yaml.load((CRDS / f"ray.io_{kind.lower()}s.yaml").read_text(), yaml.CSafeLoader)
    (found,) = (entry["schema"]["openAPIV3Schema"] for entry in document["spec"]["versions"] if entry["name"] == version)
    return found  # type: ignore[no-any-return]


def json_schema(node: dict[str, Any]) -> dict[str, Any]:
    """A structural schema as JSON Schema in which unknown fields are errors (the API server drops them without a word)."""
    result = {
        key: value
        for key, value in node.items()
        if key in ("type", "enum", "pattern", "minimum", "maximum", "required", "minLength", "maxLength", "minItems")
    }
    if node.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    if "properties" in node:
        result["properties"] = {name: json_schema(child) for name, child in node["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    if isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = json_schema(node["additionalProperties"])
    if "items" in node:
        result["items"] = json_schema(node["items"])
    if node.get("nullable"):
        return {"anyOf": [result, {"type": "null"}]}
    return result


def problems(resource: dict[str, Any]) -> list[str]:
    """Path and reason of every mistake."""
    root = schema(resource["kind"], resource["apiVersion"].removeprefix("ray.io/"))
    found = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in jsonschema.Draft202012Validator(json_schema(root)).iter_errors(resource)
    ]
    found += [f"{path}: {rule}" for path, rule in _broken_rules(root, resource, "")]
    strategy = resource["spec"].get("upgradeStrategy", {}).get("type")
    allowed = UPGRADE_STRATEGIES.get(resource["kind"], set())
    if strategy is not None and strategy not in allowed:
        found.append(f"spec.upgradeStrategy.type: {strategy} is none of {', '.join(sorted(allowed))}")
    return found


def _broken_rules(node: dict[str, Any], value: Any, path: str) -> Iterator[tuple[str, str]]:
    for rule in node.get("x-kubernetes-validations", ()):
        if not RULES[rule["rule"]](value):
            yield path, rule.get("message", rule["rule"])
    if node.get("x-kubernetes-list-type") == "map" and isinstance(value, list):
        keys = [tuple(item.get(key) for key in node["x-kubernetes-list-map-keys"]) for item in value]
        if len(set(keys)) < len(keys):
            yield path, "two entries have the same key"
    if isinstance(value, dict):
        for name, child in value.items():
            if name in node.get("properties", {}):
                yield from _broken_rules(node["properties"][name], child, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from _broken_rules(node.get("items", {}), child, f"{path}.{number}")

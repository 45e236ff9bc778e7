"""k8s/ against KubeRay's CRDs, against itself, and against the rest of the house."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from raybm.spec import ServeConfig
from tests.k8s import crds

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "k8s").glob("*.yaml"))
needs_crds = pytest.mark.skipif(not crds.CRDS.is_dir(), reason=f"no CRDs at {crds.CRDS}; set RAYBM_K8S_CRDS to a folder of KubeRay 1.7's")


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


RESOURCES = [(path.name, document) for path in FILES for document in documents(path)]
CUSTOM = [
    pytest.param(document, id=f"{name}-{document['kind']}") for name, document in RESOURCES if document["apiVersion"].startswith("ray.io/")
]


def cluster_of(resource: dict[str, Any]) -> dict[str, Any]:
    spec = resource["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec  # type: ignore[no-any-return]


def groups(resource: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(resource)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pod_templates(resource: dict[str, Any]) -> list[dict[str, Any]]:
    submitter = [resource["spec"]["submitterPodTemplate"]] if "submitterPodTemplate" in resource["spec"] else []
    return [group["template"] for group in groups(resource)] + submitter


@needs_crds
@pytest.mark.parametrize("resource", CUSTOM)
def test_is_what_the_crd_allows(resource: dict[str, Any]) -> None:
    assert crds.problems(resource) == []


@needs_crds
def test_every_mistake_of_the_broken_file_is_found() -> None:
    cluster, job = (crds.problems(document) for document in documents(Path(__file__).parent / "broken.yaml"))
    for fragment in (
        "spec.rayVersion: 2.6",
        "spec.managedBy: the managedBy field value must be",
        "spec.authOptions.mode: 'tokens'",
        "spec.upgradeStrategy.type: 'NewCluster'",
        "rayStartParams.num-cpus: 0",
        "'imag' was unexpected",
        "containers.0.env: two entries have the same key",
        "'minReplicas' is a required property",
    ):
        assert any(fragment in problem for problem in cluster), (fragment, cluster)
    assert any("cannot be used together" in problem for problem in job) and any(
        "requires either the JobStatus" in problem for problem in job
    ), job
    broken = documents(ROOT / "k8s/rayservice.yaml")[0]
    broken["spec"]["upgradeStrategy"]["type"] = "Rolling"
    assert crds.problems(broken) == ["spec.upgradeStrategy.type: Rolling is none of NewCluster, NewClusterWithIncrementalUpgrade, None"]


@needs_crds
@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayService"])
def test_all_cel_rules_are_known(kind: str) -> None:
    def rules(node: Any) -> set[str]:
        if isinstance(node, list):
            return set().union(*map(rules, node), set())
        if not isinstance(node, dict):
            return set()
        own = {rule["rule"] for rule in node.get("x-kubernetes-validations", ())}
        return own.union(*(rules(child) for child in node.values()))

    assert rules(crds.schema(kind, "v1")) <= set(crds.RULES)


@pytest.mark.parametrize("resource", CUSTOM)
def test_clusters_are_closed_and_heads_run_no_work(resource: dict[str, Any]) -> None:
    cluster = cluster_of(resource)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["autoscalerOptions"]["version"] == "v2" and cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"].startswith("raybm-redis:")
    for template in pod_templates(resource):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert "limits" in container["resources"] and not any("TOKEN" in entry["name"] for entry in container.get("env", ()))


def test_names_that_are_referred_to_exist() -> None:
    def named(kind: str) -> set[str]:
        return {document["metadata"]["name"] for _, document in RESOURCES if document["kind"] == kind}

    pods = []
    for _, document in RESOURCES:
        if document["kind"] in ("RayCluster", "RayJob", "RayService"):
            pods += [
                template["metadata"]["labels"] | {"ray.io/node-type": node}
                for template in pod_templates(document)
                for node in ("head", "worker")
            ]
            for template in pod_templates(document):
                for volume in template["spec"].get("volumes", ()):
                    assert "persistentVolumeClaim" not in volume or volume["persistentVolumeClaim"]["claimName"] in named(
                        "PersistentVolumeClaim"
                    )
                assert template["spec"].get("serviceAccountName", "raybm-worker") in named("ServiceAccount")
        elif document["kind"] == "StatefulSet":
            pods.append(document["spec"]["template"]["metadata"]["labels"])
    assert "raybm-redis" in named("Service")
    for name, document in RESOURCES:
        selector = document["spec"].get("podSelector") or document["spec"].get("selector") or {} if "spec" in document else {}
        labels = selector.get("matchLabels", {} if "matchLabels" in selector else selector)
        if document["kind"] in ("NetworkPolicy", "PodDisruptionBudget", "Service"):
            assert any(labels.items() <= pod.items() for pod in pods), (name, document["metadata"]["name"])
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] in named("Namespace")


def test_the_network_is_closed_by_default() -> None:
    policies = {document["metadata"]["name"]: document["spec"] for _, document in RESOURCES if document["kind"] == "NetworkPolicy"}
    assert policies["deny-by-default"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    dashboard = [
        spec for spec in policies.values() for rule in spec.get("ingress", ()) for port in rule.get("ports", ()) if port["port"] == 8265
    ]
    assert dashboard == [policies["ray-heads"]]


def test_the_serve_config_is_ours() -> None:
    (service,) = (document for _, document in RESOURCES if document["kind"] == "RayService")
    config = ServeConfig.parse(yaml.safe_load(service["spec"]["serveConfigV2"]))
    assert config.http_options.host == "0.0.0.0" and config.applications[0].args.gateway.api_keys


def test_versions_images_and_entry_points_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==([^\s;#]+)", (ROOT / "constraints.txt").read_text(), re.M))
    images = set()
    for _, resource in RESOURCES:
        if resource["kind"] in ("RayCluster", "RayJob", "RayService"):
            assert cluster_of(resource)["rayVersion"] == pins["ray"]
            images |= {container["image"] for template in pod_templates(resource) for container in template["spec"]["containers"]}
        if resource["kind"] == "RayJob":
            command, verb, spec = resource["spec"]["entrypoint"].split()
            assert command in project["scripts"] and verb == "run"
            assert (ROOT / spec.removeprefix("/opt/raybm/")).is_file()
    image = f"registry.example.com/raybm:{project['version']}"
    assert images == {f"{image}-cpu", f"{image}-cuda"}
    launcher = yaml.safe_load((ROOT / "cluster/aws.yaml").read_text())
    assert {launcher["docker"]["head_image"], launcher["docker"]["worker_image"]} == images

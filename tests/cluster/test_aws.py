"""cluster/aws.yaml passes Ray's own validator, offline, and says what we want of it."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "cluster/aws.yaml").read_text())


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    result = prepare_config(copy.deepcopy(config))
    validate_config(result)
    return result


def test_passes_rays_validator() -> None:
    result = prepared(CONFIG)
    assert all(command.startswith("raybm-node ray start ") for key in ("head", "worker") for command in result[f"{key}_start_ray_commands"])


@pytest.mark.parametrize("section", ["docker", "auth"])
def test_rays_validator_does_look(section: str) -> None:
    broken = copy.deepcopy(CONFIG)
    broken[section]["no_such_key"] = 1
    with pytest.raises(jsonschema.ValidationError):
        prepared(broken)


def test_the_launchers_node_config_is_what_boto3_takes() -> None:
    """Ray passes it on unseen, so a typo there costs a failed launch."""
    import boto3
    from botocore.validate import ParamValidator

    shape = boto3.client("ec2", region_name="us-east-1").meta.service_model.operation_model("RunInstances").input_shape
    for name, kind in CONFIG["available_node_types"].items():
        report = ParamValidator().validate(kind["node_config"] | {"MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), (name, report.generate_report())
        assert set(kind["node_config"]) <= set(shape.members), name


def test_the_head_runs_no_work_and_workers_are_spot_and_on_demand() -> None:
    kinds = dict(CONFIG["available_node_types"])
    assert kinds.pop(CONFIG["head_node_type"])["resources"] == {"CPU": 0, "GPU": 0}
    assert "--num-cpus=0" in CONFIG["head_start_ray_commands"][-1]
    assert sorted("InstanceMarketOptions" in kind["node_config"] for kind in kinds.values()) == [False, True]
    assert all(kind["resources"]["GPU"] and kind["min_workers"] == 0 for kind in kinds.values())


def test_authentication_is_on_and_the_dashboard_stays_inside() -> None:
    options = CONFIG["docker"]["run_options"]
    (path,) = (match[1] for option in options if (match := re.fullmatch(r"-e RAY_AUTH_TOKEN_PATH=(\S+)", option)))
    assert "-e RAY_AUTH_MODE=token" in options and path in CONFIG["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in CONFIG["head_start_ray_commands"][-1]
    assert [rule["FromPort"] for rule in CONFIG["provider"]["security_group"]["IpPermissions"]] == [22]


def test_our_own_reader_of_the_launchers_config_reads_it(tmp_path: Path) -> None:
    from raybm.cluster.placement import Ask, Nodes, _launcher_groups, fits

    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(prepared(CONFIG)))
    nodes = [Nodes(name, resources, count) for name, resources, count in _launcher_groups(tmp_path / "ray_bootstrap_config.yaml")]
    assert {node.name for node in nodes} == {"gpu_spot", "gpu_on_demand"}
    assert fits(Ask(48, 8, 1, "L4"), nodes) and not fits(Ask(49, 8, 1, "L4"), nodes) and not fits(Ask(1, 8, 1, "H100"), nodes)

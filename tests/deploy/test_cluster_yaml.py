"""`cluster.yaml` is what `ray up` accepts, and does what its comments say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from scripts.lock import pins

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_up_accepts_it(config: dict[str, Any]) -> None:
    validate_config(prepare_config(config))


def test_ray_up_refuses_a_misspelt_field(config: dict[str, Any]) -> None:
    config["idle_timeout_minuets"] = config.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuets"):
        validate_config(prepare_config(config))


def test_the_head_takes_no_work_and_0_to_8_spot_machines_with_a_gpu_do(config: dict[str, Any]) -> None:
    prepared = prepare_config(config)
    assert prepared["head_node_type"] == "head"
    head, gpu = prepared["available_node_types"]["head"], prepared["available_node_types"]["gpu"]
    assert head["resources"] == {"CPU": 0}
    assert (gpu["min_workers"], gpu["max_workers"], prepared["max_workers"]) == (0, 8, 8)
    assert gpu["resources"]["GPU"] == 1
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert prepared["provider"]["cache_stopped_nodes"] is False


def test_the_parameters_of_its_machines_are_those_of_ec2(config: dict[str, Any]) -> None:
    session = pytest.importorskip("botocore.session", reason="boto3 is an extra: puregrid[cluster]").get_session()
    from botocore.validate import ParamValidator

    shape = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    markets = session.get_service_model("ec2").shape_for("MarketType").enum
    once = {"MinCount": 1, "MaxCount": 1}
    for node in config["available_node_types"].values():
        report = ParamValidator().validate({**node["node_config"], **once}, shape)
        assert not report.has_errors(), report.generate_report()
        assert node["node_config"].get("InstanceMarketOptions", {"MarketType": "spot"})["MarketType"] in markets
    wrong = copy.deepcopy(config["available_node_types"]["gpu"]["node_config"])
    wrong["InstanceMarket"] = wrong.pop("InstanceMarketOptions")
    assert ParamValidator().validate({**wrong, **once}, shape).has_errors()


def test_nobody_without_the_token_talks_to_it_and_nothing_secret_is_in_the_file(config: dict[str, Any]) -> None:
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    (start,) = (line for line in config["head_start_ray_commands"] if "--head" in line)
    assert "--dashboard-host=127.0.0.1" in start
    text = (ROOT / "cluster.yaml").read_text()
    assert "AWS_SECRET" not in text and "AKIA" not in text


def test_data_and_weights_have_one_path_on_all_machines(config: dict[str, Any]) -> None:
    variables = dict(option[3:].split("=", 1) for option in config["docker"]["run_options"] if option[:3] == "-e ")
    for name in ("PUREGRID_DATA", "PUREGRID_WEIGHTS"):
        assert any(variables[name].startswith(f"{target}/") for target in config["file_mounts"])


DRIVERS = {"12": "525", "13": "580"}
"""CUDA's major version and the oldest branch of NVIDIA's driver that runs it (NVIDIA's table "CUDA and Drivers")."""


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/rayjob.yaml", "deploy/cron.yaml", "docs/cluster.md"])
def test_the_driver_that_is_asked_for_runs_the_locked_torch(name: str) -> None:
    major = pins((ROOT / "requirements/cuda.txt").read_text())["cuda-toolkit"].partition(".")[0]
    text = (ROOT / name).read_text()
    assert f"CUDA {major}" in text and f"{DRIVERS[major]} or" in text
    assert not [driver for other, driver in DRIVERS.items() if other != major and f"{driver} or" in text]


def test_machines_are_of_an_image_that_somebody_chose(config: dict[str, Any]) -> None:
    aws = pytest.importorskip("ray.autoscaler._private.aws.config", reason="boto3 is an extra: puregrid[cluster]")
    nodes = prepare_config(config)["available_node_types"].values()
    chosen = {node["node_config"]["ImageId"] for node in nodes}
    # Ray's own are of Ubuntu 18.04; what stands here is no real id, so that nobody starts something by accident.
    assert "18.04" in aws.DEFAULT_AMI_NAME and chosen == {"ami-00000000000000000"}
    before = copy.deepcopy(config)
    aws._check_ami(config)
    assert config["available_node_types"] == before["available_node_types"]

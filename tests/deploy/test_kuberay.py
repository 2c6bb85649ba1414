"""The manifests of `deploy/` have the fields, and only the fields, that KubeRay's CRDs have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from reduce_crd import reduced, schema_of, shared

ROOT = Path(__file__).parents[2]
CRDS = json.loads((Path(__file__).parent / "data" / "kuberay-1.7.0.json").read_text())


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy" / name).read_text())


def problems(manifest: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema_of(CRDS, manifest["kind"]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


@pytest.mark.parametrize(("name", "kind"), [("rayjob.yaml", "RayJob"), ("cron.yaml", "RayCronJob")])
def test_it_is_valid(name: str, kind: str) -> None:
    manifest = read(name)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    assert problems(manifest) == []


def test_what_is_wrong_is_found() -> None:
    manifest = read("rayjob.yaml")
    group = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    group["maxReplica"] = group.pop("maxReplicas")
    group["minReplicas"] = "0"
    group["template"]["spec"]["containers"][0]["ports"][0]["port"] = 1
    manifest["spec"]["submissionMode"] = "K8sMode"
    manifest["spec"]["rayClusterSpec"]["headGroupSpec"].pop("template")
    found = "\n".join(problems(manifest))
    for part in ("'maxReplica' was", "'0' is not of type", "'port' was", "'template' is a required"):
        assert part in found
    assert len(problems(manifest)) >= 4


def test_the_head_takes_no_work_and_gpu_workers_come_and_go() -> None:
    spec = read("rayjob.yaml")["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (0, 0, 8)
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert spec["shutdownAfterJobFinishes"] is True and spec["ttlSecondsAfterFinished"] == 600
    words = spec["entrypoint"].split()
    share = float(words[words.index("--gpus-per-worker") + 1])
    assert int(words[words.index("--workers") + 1]) == group["maxReplicas"] / share
    assert cluster["rayVersion"] == ray.__version__


def test_the_weekly_run_has_the_same_cluster_and_ends_before_the_next() -> None:
    cron, job = read("cron.yaml")["spec"], read("rayjob.yaml")["spec"]
    assert cron["jobTemplate"]["rayClusterSpec"] == job["rayClusterSpec"]
    assert cron["jobTemplate"]["activeDeadlineSeconds"] < 7 * 24 * 3600
    assert cron["jobTemplate"]["backoffLimit"] == 0
    # KubeRay pastes the entrypoint into a shell line behind `ray job submit --`.
    for entrypoint in (cron["jobTemplate"]["entrypoint"], job["entrypoint"]):
        assert not set(entrypoint) & set(";&|<>$`\"'\n")


def test_pods_are_not_root() -> None:
    cluster = read("rayjob.yaml")["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for container in group["template"]["spec"]["containers"]:
            assert container["securityContext"]["runAsNonRoot"] is True
            assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_the_reduction_keeps_names_types_and_what_is_required() -> None:
    crd = {
        "type": "object",
        "description": "left out",
        "required": ["size"],
        "properties": {
            "size": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "mode": {"type": "string", "enum": ["a", "b"]},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "anything": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            "ports": {"type": "array", "items": {"type": "integer", "format": "int32"}},
        },
    }
    kind = reduced(crd)
    assert kind == {
        "size!": "quantity",
        "mode": ["=", "a", "b"],
        "labels": {"*": "string"},
        "anything": "any",
        "ports": ["integer"],
    }
    content = shared({"A": {"first": kind, "second": kind}})
    assert content["kinds"]["A"] == {"first": "@0", "second": "@0"} and content["types"] == [kind]
    validator = jsonschema.Draft202012Validator(schema_of(content, "A"))
    assert validator.is_valid(
        {"first": {"size": "1Gi", "anything": {"x": [1]}}, "second": {"size": 1, "ports": [80]}}
    )
    for wrong in ({}, {"size": 1, "other": 1}, {"size": 1, "mode": "c"}, {"size": 1, "labels": {"a": 1}}):
        assert not validator.is_valid({"first": wrong})

"""The manifests of `deploy/` have the fields, and only the fields, that KubeRay's CRDs have."""

from __future__ import annotations

import json
import re
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


def lines(name: str) -> list[str]:
    return (ROOT / "deploy" / name).read_text().splitlines()


@pytest.mark.parametrize("name", ["rayjob.yaml", "cron.yaml"])
def test_what_is_yours_to_change_is_marked_the_sweep_too(name: str) -> None:
    text = lines(name)
    entrypoint = next(i for i, line in enumerate(text) if "entrypoint:" in line)
    comment = "\n".join(line for line in text[entrypoint - 4 : entrypoint] if line.strip().startswith("#"))
    assert "CHANGE: the sweep" in comment and "/sweep/" in comment
    for i, line in enumerate(text):
        if (
            re.search(r"registry\.example\.com|claimName: puregrid-inputs|serviceAccountName", line)
            and line.strip()[0] != "#"
        ):
            near = "\n".join(text[max(0, i - 2) : i + 1])
            assert "CHANGE" in near or "worker" in "\n".join(text[max(0, i - 8) : i]), line


@pytest.mark.parametrize("name", ["rayjob.yaml", "cron.yaml"])
def test_your_sweep_and_modules_are_on_every_pod_and_missing_ones_are_no_error(name: str) -> None:
    spec = read(name)["spec"]
    cluster = spec.get("jobTemplate", spec)["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["sweep"]["configMap"] == {"name": "puregrid-sweep", "optional": True}
        (container,) = pod["containers"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted["sweep"] in {env["value"] for env in container["env"] if env["name"] == "PYTHONPATH"}
        assert set(mounted) == set(volumes)


def test_the_lines_for_a_store_on_a_claim_are_valid_once_they_are_no_comments() -> None:
    text = "\n".join(lines("rayjob.yaml"))
    for line in (
        "- {name: store, mountPath: /store}",
        "- name: store",
        "  persistentVolumeClaim: {claimName: puregrid-store}",
    ):
        assert text.count(f"# {line}") == 1
        text = text.replace(f"# {line}", line)
    manifest = yaml.safe_load(text)
    assert problems(manifest) == []
    group = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert {"name": "store", "mountPath": "/store"} in group["containers"][0]["volumeMounts"]
    assert {"name": "store", "persistentVolumeClaim": {"claimName": "puregrid-store"}} in group["volumes"]


def test_the_claim_of_the_page_can_be_mounted_on_several_nodes() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    (claim,) = (
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "Claim" in block
    )
    assert claim["kind"] == "PersistentVolumeClaim" and claim["metadata"]["name"] == "puregrid-store"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


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

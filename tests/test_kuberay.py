"""kuberay.yaml is what KubeRay takes, as far as can be said without a cluster, and runs what this tree has.

tests/data/kuberay has the part of the API that it uses. Where KUBERAY_CRD names KubeRay's own
ray.io_rayjobs.yaml, the manifest is held to the whole of it.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import json5
import jsonschema
import pytest
from deployments import closed
from ruamel.yaml import YAML

from tuner.cli import cli
from tuner.task import make_task

ROOT = Path(__file__).parent.parent
CONFIG_MAP, JOB = YAML(typ="safe", pure=True).load_all((ROOT / "kuberay.yaml").read_text())
SCHEMA = json.loads((ROOT / "tests" / "data" / "kuberay" / "rayjob.schema.json").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
PODS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]


def test_it_is_a_ray_job() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(JOB, SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.ttlSecondAfterFinished", 1),
        ("spec.submissionMode", "JobMode"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-gpus", 0),
        ("spec.rayClusterSpec.authOptions.mode", "on"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.resources.limits.cpu", 16),
    ],
)
def test_the_schema_tells_right_from_wrong(path: str, value: Any) -> None:
    changed = json.loads(json.dumps(JOB))
    *above, last = path.split(".")
    node = changed
    for key in above:
        node = node[int(key)] if isinstance(node, list) else node[key]
    node[last] = value
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(changed)


@pytest.mark.skipif("KUBERAY_CRD" not in os.environ, reason="KUBERAY_CRD names no ray.io_rayjobs.yaml")
def test_kuberays_own_definition_takes_it() -> None:
    crd = YAML(typ="safe", pure=True).load(Path(os.environ["KUBERAY_CRD"]).read_text())
    [version] = [each for each in crd["spec"]["versions"] if each["name"] == "v1"]
    whole = closed(version["schema"]["openAPIV3Schema"])
    whole["properties"]["metadata"] = SCHEMA["$defs"]["metadata"]
    jsonschema.validate(JOB, {**whole, "$defs": SCHEMA["$defs"]})


def test_it_runs_a_command_that_there_is_on_a_task_that_loads() -> None:
    program, command, path, *options = shlex.split(JOB["spec"]["entrypoint"])
    assert (program, command) == ("tuner", "run")
    cli.commands[command].make_context("run", [path, *options])
    folder, _, name = path.rpartition("/")
    [head] = PODS[0]["template"]["spec"]["containers"]
    assert folder in {mount["mountPath"] for mount in head["volumeMounts"]}
    assert make_task(json5.loads(CONFIG_MAP["data"][name])).base_runtime == "sglang"


def test_its_ray_is_the_one_that_is_locked() -> None:
    assert f"ray=={CLUSTER['rayVersion']}\n" in (ROOT / "requirements.lock").read_text()


def test_every_volume_is_there_and_no_secret_is() -> None:
    for group in PODS:
        spec = group["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            home, *secrets = container["env"]
            assert home == {"name": "HF_HOME", "value": "/models"}
            assert secrets and all("secretKeyRef" in variable["valueFrom"] for variable in secrets)
    config = {volume["configMap"]["name"] for volume in PODS[0]["template"]["spec"]["volumes"]}
    assert config == {CONFIG_MAP["metadata"]["name"]}


def test_a_worker_has_the_gpus_of_its_largest_trial_and_a_cpu_for_each_load() -> None:
    task = make_task(json5.loads(CONFIG_MAP["data"]["task.json"]))
    for group in CLUSTER["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        most = max(task.parameters["tp-size"])  # type: ignore[arg-type]
        assert int(limits["nvidia.com/gpu"]) >= most and int(limits["cpu"]) >= int(limits["nvidia.com/gpu"])

"""cluster.yaml passes Ray's own schema and preparation, which is all that can be checked without machines."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import ray.autoscaler
from ray.autoscaler._private.util import prepare_config, validate_config
from ruamel.yaml import YAML

REPOSITORY = Path(__file__).parent.parent


def test_ray_accepts_it() -> None:
    config = YAML(typ="safe", pure=True).load((REPOSITORY / "cluster.yaml").read_text())
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["provider"]["type"] == "local"
    assert prepared["available_node_types"][prepared["head_node_type"]]


def test_every_node_asks_for_the_token() -> None:
    config = YAML(typ="safe", pure=True).load((REPOSITORY / "cluster.yaml").read_text())
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        [start] = [command for command in commands if "ray start" in command]
        assert "RAY_AUTH_MODE=token ray start" in start


def test_what_it_installs_is_what_is_locked() -> None:
    text = (REPOSITORY / "cluster.yaml").read_text()
    assert "./requirements.lock" in text and (REPOSITORY / "requirements.lock").exists()

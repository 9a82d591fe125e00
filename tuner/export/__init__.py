"""A configuration as something to run: a command, a container, manifests, or its flags alone.

Knows nothing of engines but the names of their container images and how each spells its model: it takes the
launch argv that a trial recorded. A study may come from anywhere: whatever it holds is quoted, and secrets
are left to whoever runs what is exported.
"""

from __future__ import annotations

from collections.abc import Callable

from tuner.export.commands import docker, launch_text, shell
from tuner.export.compose import compose
from tuner.export.deployment import IMAGES, Deployment, best_deployment, deployment_of
from tuner.export.flags import flags_json, flags_yaml
from tuner.export.kubernetes import kubernetes
from tuner.export.ome import ome
from tuner.export.ray_serve import ray_serve

FORMATS: dict[str, Callable[[Deployment], str]] = {
    "shell": shell,
    "docker": docker,
    "compose": compose,
    "kubernetes": kubernetes,
    "ome": ome,
    "ray-serve": ray_serve,
    "json": flags_json,
    "yaml": flags_yaml,
}

__all__ = [
    "FORMATS",
    "IMAGES",
    "Deployment",
    "best_deployment",
    "compose",
    "deployment_of",
    "docker",
    "flags_json",
    "flags_yaml",
    "kubernetes",
    "launch_text",
    "ome",
    "ray_serve",
    "shell",
]

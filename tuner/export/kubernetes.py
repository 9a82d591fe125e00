"""A Kubernetes Deployment and its Service; the container, its probes and volumes are OME's as well."""

from __future__ import annotations

from typing import Any

from tuner.export.deployment import PORT, Deployment, source_of
from tuner.export.yaml import Quoted, documents

CACHE = "/huggingface"
_SHM = "dshm"  # as OME's own runtimes call it
LOADING_S = 1800  # for a model of hundreds of gigabytes that comes from a hub
_PULLING_S = 600  # for an image of tens of gigabytes


def kubernetes(deployment: Deployment) -> str:
    """An apps/v1 Deployment with GPU limits and probes, and a Service; secrets come from a Secret.

    The Secret has the Deployment's name. A local model is taken from the same path of the node; one of a hub
    is kept as long as its pod.
    """
    name, volumes = Quoted(deployment.resource_name), volumes_of(deployment)
    labels = {"app": name}
    container = {
        "name": "engine",
        "image": Quoted(deployment.container_image),
        "command": [literal(word) for word in deployment.argv_inside],
        "env": [*_hub_env(deployment), *env_of(deployment)],
        "ports": [{"name": "http", "containerPort": PORT}],
        **resources_of(deployment),
        "securityContext": SECURITY,
        "volumeMounts": [mount for mount, _ in volumes],
        **probes(PORT),
    }
    metadata = {
        "name": name,
        **({"namespace": Quoted(deployment.namespace)} if deployment.namespace else {}),
        "labels": labels,
    }
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": 1,
            "progressDeadlineSeconds": LOADING_S + _PULLING_S,  # or it has failed while it still loads
            "strategy": {"type": "Recreate"},  # a new pod could wait for ever for the GPUs of the old one
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,  # a Service "vllm" would set VLLM_PORT, vLLM's own variable
                    "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [container],
                    "volumes": [volume for _, volume in volumes],
                },
            },
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"selector": labels, "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]},
    }
    return documents(manifest, service, comments=deployment.comments)


SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def resources_of(deployment: Deployment) -> dict[str, Any]:
    """The limit on GPUs, which is the request for them as well; nothing for an engine of the CPU."""
    return {"resources": {"limits": {"nvidia.com/gpu": deployment.gpus}}} if deployment.gpus else {}


def probes(port: int) -> dict[str, Any]:
    """Startup for as long as a model takes to load; then quick to leave the Service, slow to be killed.

    An engine under load answers late: SGLang's `/health` takes a second or more with a full queue.
    """
    health = {"httpGet": {"path": "/health", "port": port}}
    return {
        "startupProbe": {
            **health,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": LOADING_S // 10,
        },
        "readinessProbe": {**health, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 3},
        "livenessProbe": {**health, "periodSeconds": 30, "timeoutSeconds": 30, "failureThreshold": 5},
    }


def literal(text: str) -> Quoted:
    """`text` as Kubernetes leaves it, which puts variables in place of `$(NAME)` and `$` for `$$`."""
    found: Quoted = Quoted(text.replace("$", "$$"))
    return found


def shared_memory() -> tuple[dict[str, Any], dict[str, Any]]:
    """The mount and the volume: NCCL needs more shared memory than the 64 MB that a container gets."""
    volume = {"name": _SHM, "emptyDir": {"medium": "Memory"}}
    return {"name": _SHM, "mountPath": "/dev/shm"}, volume  # noqa: S108  NCCL's, not a temporary file


def volumes_of(deployment: Deployment) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What is mounted, and from where."""
    found = [shared_memory()]
    if deployment.folder:
        path = Quoted(deployment.folder)
        mount = {"name": "model", "mountPath": path, "readOnly": True}
        found.append((mount, {"name": "model", "hostPath": {"path": path}}))
    elif deployment.hub:
        found.append(({"name": "hub", "mountPath": CACHE}, {"name": "hub", "emptyDir": {}}))
    return found


def _hub_env(deployment: Deployment) -> list[dict[str, Any]]:
    """Where a hub's files are kept, and its token, if the Secret has one."""
    if not deployment.hub:
        return []
    found: list[dict[str, Any]] = [{"name": "HF_HOME", "value": CACHE}]
    if "HF_TOKEN" not in deployment.env:
        key = {"name": Quoted(deployment.resource_name), "key": "HF_TOKEN", "optional": True}
        found.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": key}})
    return [each for each in found if each["name"] not in deployment.env]


def env_of(deployment: Deployment) -> list[dict[str, Any]]:
    """The study's variables; a secret is a key of the Secret, named as the variable is."""
    return [_variable(deployment.resource_name, name, value) for name, value in deployment.env.items()]


def _variable(secret: str, name: str, value: str) -> dict[str, Any]:
    if source_of(name, value):
        key = {"name": Quoted(secret), "key": Quoted(name)}
        return {"name": Quoted(name), "valueFrom": {"secretKeyRef": key}}
    return {"name": Quoted(name), "value": literal(value)}

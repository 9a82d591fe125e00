"""A Docker Compose file of one service, by https://github.com/compose-spec/compose-spec."""

from __future__ import annotations

from typing import Any

from tuner.export.deployment import PORT, Deployment, source_of
from tuner.export.yaml import Quoted, documents


def compose(deployment: Deployment) -> str:
    """A `compose.yaml`: the engine with its GPUs, restarted when it dies, unhealthy where it does not answer.

    Secrets are taken from the environment of `docker compose up`, which refuses to start without them.
    """
    program, *arguments = deployment.argv_inside
    environment = {name: _variable(name, value) for name, value in deployment.env.items()}
    volume, extra = _model(deployment)
    service = {
        "image": _literal(deployment.container_image),
        "entrypoint": [_literal(program)],
        "command": [_literal(word) for word in arguments],
        "ports": [Quoted(f"{PORT}:{PORT}")],
        "ipc": "host",  # NCCL needs more shared memory than 64 MB
        "restart": "unless-stopped",
        **({"environment": {**extra, **environment}} if extra or environment else {}),
        "volumes": [volume],
        **({"deploy": _gpus(deployment.gpus)} if deployment.gpus else {}),
        "healthcheck": {
            "test": ["CMD", "curl", "-fsS", Quoted(f"http://127.0.0.1:{PORT}/health")],
            "interval": "30s",
            "timeout": "20s",
            "retries": 4,
            "start_period": "30m",  # until then it loads, and downloads
        },
    }
    file = {"name": Quoted(deployment.resource_name), "services": {"engine": service}}
    return documents(file, comments=deployment.comments)


def _gpus(count: int) -> dict[str, Any]:
    device = {"driver": "nvidia", "count": count, "capabilities": ["gpu"]}
    return {"resources": {"reservations": {"devices": [device]}}}


def _model(deployment: Deployment) -> tuple[dict[str, Any], dict[str, Any]]:
    """The volume that has the model, and what the engine must know of it."""
    if deployment.folder:
        folder = _literal(deployment.folder)
        return {"type": "bind", "source": folder, "target": folder, "read_only": True}, {}
    cache = {"type": "bind", "source": "${HOME}/.cache/huggingface", "target": "/huggingface"}
    token = {} if "HF_TOKEN" in deployment.env else {"HF_TOKEN": "${HF_TOKEN:-}"}
    return cache, {"HF_HOME": "/huggingface", **token}


def _variable(name: str, value: str) -> str:
    source = source_of(name, value)
    return f"${{{source}:?is to be set}}" if source else _literal(value)


def _literal(text: str) -> Quoted:
    """`text` as Compose leaves it, which puts variables in place of `$NAME` and `$` for `$$`."""
    found: Quoted = Quoted(text.replace("$", "$$"))
    return found

"""A configuration as something to run: shell, docker, a Kubernetes Deployment, or its flags as JSON.

Knows nothing of engines but the names of their container images: it takes the launch argv that a trial
recorded. A study may come from anywhere: whatever it holds is quoted, and secrets are left to whoever runs
what is exported.
"""

from __future__ import annotations

import io
import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString as _Quoted  # kubectl reads YAML 1.1: on is true

from tuner.analysis import summary
from tuner.analysis.trials import command_of, is_number
from tuner.errors import StudyError
from tuner.results import StudyResults
from tuner.secrets import is_secret, is_switch, reference

PORT = 30000
IMAGES = {
    "llamacpp": "ghcr.io/ggml-org/llama.cpp",
    "sglang": "lmsysorg/sglang",
    "simulator": "lmsysorg/sglang",
    "vllm": "vllm/vllm-openai",
}
_TAGS = {"llamacpp": "server"}  # where the task names none: the image that serves, on the CPU
_PROGRAMS = {"llama-server": "/app/llama-server"}  # where an image has it off its PATH
_SIMULATED = "Found on the SIMULATOR: measure it on the real hardware before you rely on it."
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Deployment:
    """What is exported: the launch argv, the flags it was made of, GPUs, image, model and environment."""

    argv: Sequence[str]
    flags: Mapping[str, Any]
    gpus: int
    name: str
    image: str
    model: str = ""
    namespace: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def folder(self) -> str:
        """The local folder or file of the model, which a container needs to see; empty for a hub id."""
        return self.model if self.model.startswith("/") else ""

    @property
    def argv_inside(self) -> list[str]:
        """The argv within the image."""
        return [_PROGRAMS.get(self.argv[0], self.argv[0]), *self.argv[1:]]


def best_deployment(results: StudyResults) -> Deployment:
    """The best configuration of a study; StudyError where none finished."""
    about, best = results.about, summary(results).best
    if about.get("kind") == "bench":
        raise StudyError(f"{about['study']} measured a server that ran already: nothing to launch")
    if best is None:
        raise StudyError(
            f"study {about['study']} has no configuration to recommend: none finished within its SLOs"
        )
    task, engine = about["task"], about.get("engine", "")
    options = task.get("engine", {})
    tag = task.get("runtime_image_tag") or _TAGS.get(engine, "latest")
    argv, gpus = command_of(best), best["gpus"]
    if not argv or not is_number(gpus) or math.isnan(gpus):
        raise StudyError(f"trial {best['trial']} has no launch command on record")
    return Deployment(
        argv=argv,
        flags={**options.get("args", {}), **best["config"]},
        gpus=max(int(gpus), 0),
        name=about["study"],
        image=f"{IMAGES[engine]}:{tag}" if engine in IMAGES else "",
        model=task.get("model", {}).get("id_or_path", ""),
        namespace=task.get("model", {}).get("namespace", ""),
        env=_checked(options.get("env", {})),
        note=_SIMULATED if about.get("simulated") else "",
    )


def _checked(env: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name):  # the one word of a shell command that no quotes protect
            raise StudyError(f"the study's engine.env holds {name!r}, which is no variable's name")
        if not isinstance(value, str):
            raise StudyError(f"the study's engine.env.{name} is no text")
    return env


def shell(deployment: Deployment) -> str:
    """A command for a POSIX shell, a flag to a line; secrets are taken from the caller's environment."""
    env = [_assigned(name, value) for name, value in deployment.env.items()]
    program, *arguments = map(shlex.quote, deployment.argv)
    if "=" in program and not program.startswith("'"):
        program = f"'{program}'"  # or the shell would take it for an assignment
    return _commented(deployment.note) + _folded([*env, program, *arguments])


def docker(deployment: Deployment) -> str:
    """A `docker run` command that gives the container its GPUs, and a local model as it is."""
    sources = {name: _source(name, value) for name, value in deployment.env.items()}
    env = [
        ["-e", name if sources[name] else shlex.quote(f"{name}={value}")]
        for name, value in deployment.env.items()
    ]
    renamed = [name for name, source in sources.items() if source not in (None, name)]
    words = [
        *(_assigned(name, deployment.env[name]) for name in renamed),
        *("docker", "run", "--rm"),
        *(("--gpus", str(deployment.gpus)) if deployment.gpus else ()),
        *("--ipc=host", "-p", f"{PORT}:{PORT}"),
        *_docker_model(deployment),
        *(word for pair in env for word in pair),
        *("--entrypoint", shlex.quote(deployment.argv_inside[0]), shlex.quote(_image(deployment))),
        *map(shlex.quote, deployment.argv_inside[1:]),
    ]
    return _commented(deployment.note) + _folded(words)


def _docker_model(deployment: Deployment) -> list[str]:
    if folder := deployment.folder:
        return ["-v", shlex.quote(f"{folder}:{folder}:ro")]
    return ["-v", '"$HOME/.cache/huggingface:/huggingface"', "-e", "HF_HOME=/huggingface"]


def kubernetes(deployment: Deployment) -> str:
    """An apps/v1 Deployment with GPU limits and probes; secrets come from a Secret of the same name.

    A local model is taken from the same path of the node. NCCL needs more shared memory than 64 MB.
    """
    name = _Quoted(re.sub(r"[^a-z0-9]+", "-", deployment.name.lower())[:50].strip("-") or "engine")
    volumes = _kubernetes_volumes(deployment)
    probe = {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 10}
    container = {
        "name": "engine",
        "image": _Quoted(_image(deployment)),
        "command": [_literal(word) for word in deployment.argv_inside],
        "env": [_kubernetes_env(name, key, value) for key, value in deployment.env.items()],
        "ports": [{"containerPort": PORT}],
        **({"resources": {"limits": {"nvidia.com/gpu": deployment.gpus}}} if deployment.gpus else {}),
        "volumeMounts": [mount for mount, _ in volumes],
        "startupProbe": {**probe, "failureThreshold": 120},
        "readinessProbe": probe,
        "livenessProbe": {**probe, "periodSeconds": 30, "failureThreshold": 4},
    }
    labels = {"app": name}
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name,
            **({"namespace": _Quoted(deployment.namespace)} if deployment.namespace else {}),
            "labels": labels,
        },
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [container], "volumes": [volume for _, volume in volumes]},
            },
        },
    }
    text = io.StringIO()
    yaml = YAML()
    yaml.representer.ignore_aliases = lambda data: True  # written out: people read and edit it
    yaml.allow_unicode, yaml.width = False, 2**20  # odd characters and folded lines would not come back whole
    yaml.dump(manifest, text)
    return _commented(deployment.note) + text.getvalue()


def flags_json(deployment: Deployment) -> str:
    """The flags alone, as JSON."""
    return json.dumps(dict(deployment.flags), indent=2) + "\n"


FORMATS: dict[str, Callable[[Deployment], str]] = {
    "shell": shell,
    "docker": docker,
    "kubernetes": kubernetes,
    "json": flags_json,
}


def _image(deployment: Deployment) -> str:
    if not deployment.image:
        raise StudyError("no container image of this engine is known; --format shell or json")
    return deployment.image


def _commented(note: str) -> str:
    return "".join(f"# {line}\n" for line in note.splitlines())


def _folded(words: Sequence[str]) -> str:
    """Words as one command, a new line before each option."""
    lines: list[str] = []
    for word in words:
        if lines and not (word.startswith("--") and len(lines[-1]) > 20):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return " \\\n  ".join(lines) + "\n"


def _source(name: str, value: str) -> str | None:
    """The caller's variable that has the value: the one it refers to, or a secret's own; None: neither."""
    return reference(value) or (name if is_secret(name) and not is_switch(value) else None)


def _assigned(name: str, value: str) -> str:
    source = _source(name, value)
    return f'{name}="${source}"' if source else f"{name}={shlex.quote(value)}"


def _literal(text: str) -> _Quoted:
    """`text` as Kubernetes leaves it, which puts variables in place of `$(NAME)` and `$` for `$$`."""
    quoted: _Quoted = _Quoted(text.replace("$", "$$"))
    return quoted


def _kubernetes_volumes(deployment: Deployment) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What is mounted, and from where."""
    memory = {"name": "shm", "emptyDir": {"medium": "Memory"}}
    volumes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"name": "shm", "mountPath": "/dev/shm"}, memory)  # noqa: S108  NCCL's, not a temporary file
    ]
    if deployment.folder:
        path = _Quoted(deployment.folder)
        mount = {"name": "model", "mountPath": path, "readOnly": True}
        volumes.append((mount, {"name": "model", "hostPath": {"path": path}}))
    return volumes


def _kubernetes_env(secret: str, name: str, value: str) -> dict[str, Any]:
    if _source(name, value):
        key = {"name": secret, "key": _Quoted(name)}
        return {"name": _Quoted(name), "valueFrom": {"secretKeyRef": key}}
    return {"name": _Quoted(name), "value": _literal(value)}

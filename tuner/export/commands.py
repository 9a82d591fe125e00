"""A configuration as one command: for a POSIX shell, or for docker."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from tuner.analysis import summary
from tuner.export.deployment import PORT, Deployment, best_deployment, source_of
from tuner.results import StudyResults


def launch_text(found: StudyResults) -> str | None:
    """The command that launches a study's best configuration; None where there is none.

    Without the comments that say where it comes from: it is shown beside that.
    """
    if found.about.get("kind") == "bench" or summary(found).best is None:
        return None
    return shell(replace(best_deployment(found), origin="")).strip()


def shell(deployment: Deployment) -> str:
    """A command for a POSIX shell, a flag to a line; secrets are taken from the caller's environment."""
    env = [_assigned(name, value) for name, value in deployment.env.items()]
    program, *arguments = map(shlex.quote, deployment.argv)
    if "=" in program and not program.startswith("'"):
        program = f"'{program}'"  # or the shell would take it for an assignment
    return deployment.comments + _folded([*env, program, *arguments])


def docker(deployment: Deployment) -> str:
    """A `docker run` command that gives the container its GPUs, and a local model as it is."""
    sources = {name: source_of(name, value) for name, value in deployment.env.items()}
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
        *("--entrypoint", shlex.quote(deployment.argv_inside[0]), shlex.quote(deployment.container_image)),
        *map(shlex.quote, deployment.argv_inside[1:]),
    ]
    return deployment.comments + _folded(words)


def _docker_model(deployment: Deployment) -> list[str]:
    if folder := deployment.folder:
        return ["-v", shlex.quote(f"{folder}:{folder}:ro")]
    token = [] if "HF_TOKEN" in deployment.env else ["-e", "HF_TOKEN"]  # if the caller has one
    return ["-v", '"$HOME/.cache/huggingface:/huggingface"', "-e", "HF_HOME=/huggingface", *token]


def _folded(words: Sequence[str]) -> str:
    """Words as one command, a new line before each option."""
    lines: list[str] = []
    for word in words:
        if lines and not (word.startswith("--") and len(lines[-1]) > 20):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return " \\\n  ".join(lines) + "\n"


def _assigned(name: str, value: str) -> str:
    source = source_of(name, value)
    return f'{name}="${source}"' if source else f"{name}={shlex.quote(value)}"

"""What is exported of a study: one trial's configuration, and where its figures come from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuner.analysis import Status, Summary, status, summary
from tuner.analysis.trials import Trial, command_of, is_number, is_true, objectives_of, rows
from tuner.errors import StudyError
from tuner.report.sentences import gain_sentence, other_objectives
from tuner.report.words import engine_text, gain_text, promises_text, unit_of
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
    """What is exported: the launch argv, the flags it was made of, GPUs, image, model and environment.

    `engine` is whose argv it is, `served` the model's name in requests, `accelerator` the kind of GPU as Ray
    names it, empty for any. `note` is a warning, `origin` says where the figures come from.
    """

    argv: Sequence[str]
    flags: Mapping[str, Any]
    gpus: int
    name: str
    image: str
    model: str = ""
    namespace: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    engine: str = "sglang"
    served: str = ""
    accelerator: str = ""
    origin: str = ""

    @property
    def folder(self) -> str:
        """The local folder or file of the model, which a container needs to see; empty for a hub id."""
        return self.model if self.model.startswith("/") else ""

    @property
    def hub(self) -> str:
        """The model's id on the hub; empty for a local one."""
        return "" if self.folder else self.model

    @property
    def argv_inside(self) -> list[str]:
        """The argv within the image."""
        return [_PROGRAMS.get(self.argv[0], self.argv[0]), *self.argv[1:]]

    @property
    def resource_name(self) -> str:
        """The name as Kubernetes takes one for a Service: lower case, from a letter on, at most 63."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return (slug if slug[:1].isalpha() else f"engine-{slug}")[:50].strip("-")

    @property
    def container_image(self) -> str:
        """The image; StudyError where none of this engine is known."""
        if not self.image:
            raise StudyError("no container image of this engine is known; --format shell, json or yaml")
        return self.image

    @property
    def comments(self) -> str:
        """The note and the origin as lines of comment."""
        said = "\n".join(text for text in (self.note, self.origin) if text)
        return "".join(f"# {' '.join(line.split())}\n" for line in said.splitlines())


def best_deployment(results: StudyResults) -> Deployment:
    """The best configuration of a study; StudyError where none finished."""
    return deployment_of(results)


def deployment_of(results: StudyResults, number: int | None = None) -> Deployment:
    """The configuration of trial `number`, or the best; StudyError where there is none to run."""
    about = results.about
    if about.get("kind") == "bench":
        raise StudyError(f"{about['study']} measured a server that ran already: nothing to launch")
    answer = summary(results)
    best = answer.best  # its figures are those of its repeats
    is_best = number is None or (best is not None and best["trial"] == number)
    trial = best if is_best else _trial(results, number)
    if trial is None:
        raise StudyError(f"study {about['study']} has no configuration to recommend: {answer.reason}")
    task, engine = about["task"], about.get("engine", "")
    options, model = task.get("engine", {}), task.get("model", {}).get("id_or_path", "")
    tag = task.get("runtime_image_tag") or _TAGS.get(engine, "latest")
    argv, gpus = command_of(trial), trial["gpus"]
    if not argv or not is_number(gpus) or math.isnan(gpus):
        raise StudyError(f"trial {trial['trial']} has no launch command on record")
    fixed = {flag: value for flag, value in options.get("args", {}).items() if _reaches(flag, value, argv)}
    return Deployment(
        argv=argv,
        flags={**fixed, **trial["config"]},
        gpus=max(int(gpus), 0),
        name=about["study"],
        image=f"{IMAGES[engine]}:{tag}" if engine in IMAGES else "",
        model=model,
        namespace=task.get("model", {}).get("namespace", ""),
        env=_checked(options.get("env", {})),
        note=_SIMULATED if about.get("simulated") else "",
        engine="sglang" if engine == "simulator" else engine,
        served=_after(argv, "--served-model-name") or _after(argv, "--alias") or model,
        accelerator=_kind(task),
        origin=_origin(results, answer, trial),
    )


def _trial(results: StudyResults, number: int | None) -> Trial:
    found: list[dict[str, Any]] = [row for row in rows(results.trials) if row["trial"] == number]
    if not found:
        raise StudyError(f"study {results.about['study']} has no trial {number}")
    if status(found[0]) is Status.FAILED:
        raise StudyError(f"trial {number} failed ({found[0]['failure_cause']}): nothing to launch")
    return found[0]


def _reaches(flag: str, value: Any, argv: Sequence[str]) -> bool:
    """Whether a fixed flag is in the argv: the simulator's own are not, nor is what switches nothing."""
    return value is None or value is False or any(word == f"--{flag}" for word in argv)


def _after(argv: Sequence[str], flag: str) -> str:
    places = [place for place, word in enumerate(argv[:-1]) if word == flag]
    return argv[places[0] + 1] if places else ""


def _kind(task: Mapping[str, Any]) -> str:
    resources = task.get("resources")
    kind = resources.get("accelerator_type") if isinstance(resources, Mapping) else None
    return kind if isinstance(kind, str) else ""


def _checked(env: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name):  # the one word of a shell command that no quotes protect
            raise StudyError(f"the study's engine.env holds {name!r}, which is no variable's name")
        if not isinstance(value, str):
            raise StudyError(f"the study's engine.env.{name} is no text")
    return env


def _origin(results: StudyResults, answer: Summary, trial: Trial) -> str:
    """Study and trial, what was measured of it, on what: three lines."""
    unit, objective, best = unit_of(results), answer.objective, answer.best
    value, is_best = trial["objective"], best is not None and best["trial"] == trial["trial"]
    figure = unit.amount(float(value)) if is_number(value) and math.isfinite(value) else "not measured"
    gain = gain_sentence(answer) if is_best else gain_text(trial, answer)
    hardware = [_gpus_text(trial)] if trial["gpus"] > 0 else []
    version = trial["engine_version"]
    engine = engine_text(str(trial["engine"]), version if isinstance(version, str) else None)
    lines = [
        f"Study {results.about['study']}, trial {trial['trial']}{', its best' if is_best else ''}: "
        f"{objective.meaning} {figure}",
        "" if gain == "–" else f"Gain: {gain}",
        f"Also: {also}" if is_best and (also := other_objectives(answer, objectives_of(results))) else "",
        f"SLOs: {promises_text(trial)}" if trial["slo_worst"] and _judged(trial) else "",
        ", ".join([f"Measured with {engine}", *hardware]),
    ]
    return "\n".join(line for line in lines if line)


def _judged(trial: Trial) -> bool:
    return is_true(trial["slo_met"]) or is_number(trial["slo_worst_violation"])


def _gpus_text(trial: Trial) -> str:
    count, model = int(trial["gpus"]), trial["gpu_model"]
    return f"{count} × {model}" if isinstance(model, str) else f"{count} GPU{'s' * (count > 1)}"


def source_of(name: str, value: str) -> str | None:
    """The caller's variable that has the value: the one it refers to, or a secret's own; None: neither."""
    return reference(value) or (name if is_secret(name) and not is_switch(value) else None)

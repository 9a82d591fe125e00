"""What a task says of the model, of the engine that serves it, and of what a trial needs of the cluster."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from tuner.registry import unknown_engine
from tuner.secrets import is_secret, is_switch, reference
from tuner.task.fields import FlagName, Seconds, Section, Text, Value, VariableName, refuse

_SET_BY_TUNER = "is set by the tuner itself, for each trial anew"
_RESERVED = {
    "host": _SET_BY_TUNER,
    "port": _SET_BY_TUNER,
    "model": "is the task's model.id_or_path",
    "model-path": "is the task's model.id_or_path",
    "served-model-name": "is the task's benchmark.model_name",
}
_ON_COMMAND_LINE = "is a secret, and every user of a machine sees its command lines: use engine.env"


def reserved(flag: str) -> str:
    """Why a task may not give a flag, however it spells it; empty where it may."""
    spelt = flag.replace("_", "-")
    for name, why in _RESERVED.items():
        if spelt == name or (len(spelt) > 1 and name.startswith(spelt)):  # argparse takes abbreviations
            return why
    return _ON_COMMAND_LINE if is_secret(flag) else ""


class Model(Section):
    """The model to serve."""

    id_or_path: Text = Field(
        min_length=1,
        description="Hub id or local folder. The engine is given it as it is; a relative folder is one below "
        "the working directory. Only a task of the simulator may leave it out.",
    )
    namespace: Text = Field("", description="Kubernetes namespace of exported manifests. Default: none.")


class EngineOptions(Section):
    """How the engine is run, beside the flags that are tuned."""

    python: Text | None = Field(
        None, description="Interpreter that has the engine. Default: the tuner's own."
    )
    command: list[Text] | None = Field(
        None,
        min_length=1,
        description="Words that start the server, in place of `python -m MODULE`; the flags follow them: "
        '`["numactl", "-N", "0", "python3", "-m", "sglang.launch_server"]`.',
    )
    args: dict[FlagName, Value] = Field({}, description="Flags that are the same in every trial.")
    env: dict[VariableName, Text] = Field(
        {},
        description="Environment variables of the engine's process. A secret is written `${NAME}`: the value "
        "of that variable where the study is started.",
    )
    start_timeout: Seconds = Field(
        300.0, description="From launch until the first token must be served; large models take minutes."
    )
    hang_timeout: Seconds = Field(
        60.0, description="Under load without any token; then the engine hangs, and the trial has failed."
    )

    def problems(self) -> list[tuple[str, str]]:
        """(key, message) of what does not go together, and of secrets."""
        found = []
        if self.command and self.python:
            found.append(("command", "names the interpreter as well; leave engine.python out"))
        for number, word in enumerate(self.command or ()):
            name, assigned, value = word.partition("=")
            named = is_secret(name) and (assigned or name.startswith("--"))
            if named and not (assigned and is_switch(value)):
                found.append((f"command[{number}]", _ON_COMMAND_LINE))
        for name, value in self.env.items():
            if is_secret(name) and not (reference(value) or is_switch(value)):
                found.append((f"env.{name}", f"is a secret, which no file should hold: write ${{{name}}}, "
                              "the variable of that name where the study is started"))  # fmt: skip
        return found


class Resources(Section):
    """What a trial needs of the cluster, beside as many GPUs as its sizes ask for."""

    accelerator_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] | None = Field(
        None,
        description="Kind of GPU that every trial needs, as Ray names it: `H100`, `A100-80G`, `L4` ... "
        "(docs/cluster.md#who-gets-which-gpus). Default: any.",
    )


def _engine(name: str) -> str:
    if problem := unknown_engine(name):
        raise refuse(problem)
    return name


EngineName = Annotated[Text, AfterValidator(_engine)]

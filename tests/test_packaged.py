"""Where an engine that is a Python package is found: behind `engine.python` or `engine.command`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from contracts.engine_contract import EngineContract

from tuner.engines.vllm import VllmEngine
from tuner.errors import EngineUnavailable, TaskError
from tuner.failures import TrialFailed
from tuner.task import make_task

STAND_IN = {"PYTHONPATH": str(Path(__file__).parent / "stand_ins")}
WRAPPED = ["env", "WRAPPED=1", sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]


def engine(command: list[str], **env: str) -> VllmEngine:
    """vLLM's stand-in, run by `command`."""
    return VllmEngine(
        make_task(
            {
                "base_runtime": "vllm",
                "model": {"id_or_path": "llama-3.1-8b-instruct"},
                "benchmark": {"model_name": f"served-{uuid4().hex}"},
                "engine": {"command": command, "env": {**STAND_IN, **env}},
            }
        )
    )


class TestBehindACommand(EngineContract):
    """A wrapper before the interpreter: `numactl`, `env`, `nsys profile`."""

    @pytest.fixture
    def engine(self) -> VllmEngine:
        return engine(WRAPPED)

    @pytest.fixture
    def hopeless(self) -> Mapping[str, Any]:
        return {"gpu-memory-utilization": 0.05}

    def test_the_wrapped_interpreter_is_asked_for_the_version(self, engine: VllmEngine) -> None:
        assert engine.version() == "0.32.0"

    def test_the_wrapped_parser_is_asked_for_its_flags(self, engine: VllmEngine) -> None:
        with pytest.raises(TrialFailed, match="did you mean --max-num-seqs"):
            engine.check({"max-num-sequences": 8})


class TestBehindAScript(EngineContract):
    """A program of the user's own, which only the start can tell about."""

    @pytest.fixture
    def engine(self, tmp_path: Path) -> VllmEngine:
        script = tmp_path / "serve-it"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m vllm.entrypoints.cli.main serve "$@"\n')
        script.chmod(0o755)
        return engine([str(script)])

    @pytest.fixture
    def hopeless(self) -> Mapping[str, Any]:
        return {"max-num-sequences": 8}  # passes the check: nobody can be asked

    def test_it_is_named_in_place_of_a_version(self, engine: VllmEngine, tmp_path: Path) -> None:
        assert engine.version() == f"run by {tmp_path / 'serve-it'}"


@pytest.mark.parametrize("command", [["no-such-program", "serve"], ["/no/such/python", *WRAPPED[3:]]])
def test_a_program_that_is_not_there_is_told_in_one_line(command: list[str]) -> None:
    with pytest.raises(EngineUnavailable, match=r"vllm: engine\.command cannot be run") as missing:
        engine(command).version()
    assert command[0] in str(missing.value) and "\n" not in str(missing.value)


def test_a_program_is_looked_up_on_the_engines_own_path(tmp_path: Path) -> None:
    (tmp_path / "served").symlink_to(shutil.which("true") or "")
    assert engine(["served"], PATH=str(tmp_path)).version() == "run by served"


def test_it_is_either_an_interpreter_or_a_command() -> None:
    with pytest.raises(TaskError, match=r"engine\.command.*leave engine\.python out"):
        make_task({"engine": {"command": ["vllm", "serve"], "python": "/usr/bin/python3"}})
    with pytest.raises(TaskError, match=r"engine\.command"):
        make_task({"engine": {"command": []}})


@pytest.mark.parametrize("order", [None, "FASTEST_FIRST"])
def test_it_is_given_its_gpus_by_the_numbers_that_nvml_has_for_them(
    tmp_path: Path, order: str | None
) -> None:
    script = tmp_path / "serve-it"
    served = f'exec {sys.executable} -m vllm.entrypoints.cli.main serve "$@"'
    script.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\n{served}\n")
    script.chmod(0o755)
    own = {} if order is None else {"CUDA_DEVICE_ORDER": order}
    with engine([str(script)], **own).launch({}, gpu_ids=["3", "1"], log_path=tmp_path / "log", timeout_s=60):
        seen = dict(line.partition("=")[::2] for line in (tmp_path / "seen").read_text().splitlines())
    assert seen["CUDA_VISIBLE_DEVICES"] == "3,1"
    assert seen["CUDA_DEVICE_ORDER"] == (order or "PCI_BUS_ID")

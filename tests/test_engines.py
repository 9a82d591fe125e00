"""The adapters hold the contract; what is special in one of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from contracts.engine_contract import EngineContract

from tuner.engines import make_engine
from tuner.engines.base import Engine
from tuner.errors import EngineUnavailable, TaskError
from tuner.failures import Cause, Stage, TrialFailed
from tuner.task import Task, make_task


def simulator_task(**engine: Any) -> Task:
    return make_task(
        {
            "model": {"id_or_path": "llama-3.1-8b-instruct"},
            "benchmark": {"model_name": f"served-{uuid4().hex}"},
            "engine": engine,
        }
    )


class TestSimulator(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return make_engine(simulator_task(args={"gpu": "h200"}))

    @pytest.fixture
    def hopeless(self) -> Mapping[str, Any]:
        return {"mem-fraction-static": 0.05}

    def test_it_says_that_it_is_simulated(self, engine: Engine, tmp_path: Path) -> None:
        assert engine.simulated
        with self._launch(engine, {}, tmp_path) as server:
            assert "simulator" in server.info.version
            assert server.info.effective_args["simulated"] is True
            assert server.info.effective_args["gpu"] == "h200"
            assert server.info.kv_tokens
        assert "SIMULATION" in (tmp_path / "engine.log").read_text()

    def test_flags_that_sglang_refuses_are_refused_before_anything_starts(self, engine: Engine) -> None:
        for config in ({"schedule-policy": "nosuch"}, {"no-such-flag": 1}, {"tp-size": "two"}):
            with pytest.raises(TrialFailed) as refused:
                engine.check(config)
            assert refused.value.failure.stage is Stage.CHECK
            assert refused.value.failure.cause is Cause.INVALID_FLAGS

    @pytest.mark.parametrize(
        ("flag", "near"),
        [("tp", "--tp-size"), ("dp", "--dp-size"), ("tensor-parallel", "--tensor-parallel-size")],
    )
    def test_an_abbreviation_is_refused_for_its_gpus_would_not_be_counted(
        self, engine: Engine, flag: str, near: str
    ) -> None:
        with pytest.raises(TrialFailed) as refused:
            engine.check({flag: 4})
        assert refused.value.failure.detail == f"unrecognized argument --{flag} (did you mean {near}?)"
        engine.check({near[2:]: 4})
        assert engine.gpus({near[2:]: 4}) == (4 if near != "--dp-size" else engine.gpus({"dp-size": 4}))

    def test_no_memory_is_told_from_no_such_model(self, tmp_path: Path) -> None:
        engine = make_engine(simulator_task())
        with pytest.raises(TrialFailed) as starved:
            self._launch(engine, {"mem-fraction-static": 0.05}, tmp_path).__enter__()
        assert starved.value.failure.cause is Cause.OUT_OF_MEMORY
        nowhere = make_engine(make_task({"model": {"id_or_path": "no/such-model"}}))
        with pytest.raises(TrialFailed) as missing:
            self._launch(nowhere, {}, tmp_path).__enter__()
        assert missing.value.failure.cause is Cause.MODEL_NOT_FOUND

    def test_its_own_flags_are_not_exported(self, engine: Engine) -> None:
        command = engine.launch_command({"tp-size": 2})
        assert "sglang.launch_server" in command and "--gpu" not in command
        assert command[command.index("--tp-size") + 1] == "2"


NO_SIZES: list[tuple[Any, dict[str, str]]] = [
    ([1, 0, True, 2], {"[1]": "0", "[2]": "true"}),
    (["2", 2.0, None, 5000], {"[0]": "'2'", "[1]": "2.0", "[2]": "null", "[3]": "5000"}),
    ({"type": "integer", "low": 0, "high": 2_000_000}, {".low": "0", ".high": "2000000"}),
    ({"type": "categorical", "values": ["two"]}, {".values[0]": "'two'"}),
    ({"type": "float", "low": 1, "high": 2}, {".type": "'float'"}),
]


@pytest.mark.parametrize(
    ("engine", "flag"),
    [
        ("simulator", "tp-size"),
        ("sglang", "data-parallel-size"),
        ("vllm", "tensor_parallel_size"),
        ("vllm", "data-parallel-size"),
        ("vllm", "prefill-context-parallel-size"),
    ],
)
def test_a_size_that_is_no_number_of_gpus_is_refused_with_its_key(engine: str, flag: str) -> None:
    def refused(**sections: Any) -> list[str]:
        with pytest.raises(TaskError) as raised:
            make_engine(make_task({"task_name": "t", "model": {"id_or_path": "m"}, **sections}), engine)
        return str(raised.value).splitlines()

    must = "must be an integer from 1 to 4096, got"
    for spec, wrong in NO_SIZES:
        said = [f"t: parameters.{flag}{place}: {must} {shown}" for place, shown in wrong.items()]
        assert refused(parameters={flag: spec}) == said
    fixed = refused(parameters={"x": [1]}, engine={"args": {flag: 0.5}})
    assert fixed == [f"t: engine.args.{flag}: {must} 0.5"]


def test_an_engine_that_is_not_there_says_what_is_missing_in_one_line() -> None:
    task = make_task({"base_runtime": "sglang", "model": {"id_or_path": "m"}, "parameters": {"tp-size": [1]}})
    with pytest.raises(EngineUnavailable) as missing:
        make_engine(task).version()
    assert "pip install sglang" in str(missing.value)
    assert "\n" not in str(missing.value)


def test_an_unknown_engine_names_the_nearest() -> None:
    with pytest.raises(EngineUnavailable, match="did you mean simulator"):
        make_engine(simulator_task(), "simulater")

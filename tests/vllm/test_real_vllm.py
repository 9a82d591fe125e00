"""The contract on a real vLLM: `VLLM_PYTHON=/opt/vllm/bin/python pytest tests/vllm`.

A build for the CPU will do; the model is made here, and its weights at random. A start takes half a minute.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import processes
import pytest
from contracts.engine_contract import EngineContract
from tiny_llama import write_tiny_model

from tuner.engines.server import call
from tuner.engines.vllm import VllmEngine
from tuner.failures import Cause, TrialFailed
from tuner.task import make_task

pytestmark = pytest.mark.timeout(1200)
LENGTH = 2048


class TestVllm(EngineContract):
    start_limit_s = 400.0

    @pytest.fixture
    def model(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_tiny_model(tmp_path_factory.mktemp("tiny"))

    @pytest.fixture
    def engine(self, model: Path) -> VllmEngine:
        options = {
            "python": os.environ["VLLM_PYTHON"],
            "args": {
                "load-format": "dummy",
                "max-model-len": LENGTH,
                "dtype": "bfloat16",
                "enforce-eager": True,
            },
            "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
        }
        document = {
            "base_runtime": "vllm",
            "model": {"id_or_path": str(model)},
            "benchmark": {"model_name": f"served-{uuid4().hex}"},
            "engine": options,
        }
        return VllmEngine(make_task(document))

    @pytest.fixture
    def good(self) -> Mapping[str, Any]:
        return {"max-num-seqs": 8, "max-num-batched-tokens": 2048}

    @pytest.fixture
    def hopeless(self) -> Mapping[str, Any]:
        return {"max-model-len": 100_000}

    def test_what_it_resolved_is_told_and_no_process_of_it_stays(
        self, engine: VllmEngine, good: Mapping[str, Any], tmp_path: Path
    ) -> None:
        with self._launch(engine, good, tmp_path) as server:
            family = processes.below(server.process.pid)
            info = server.info
        assert len(family) >= 2  # the engine's core and a worker
        left = processes.command_lines()
        assert not {pid: line for pid in family if (line := left.get(pid))}  # a zombie's line is empty
        assert engine.version().startswith(info.version)
        assert info.kv_tokens and info.kv_tokens >= LENGTH
        assert info.effective_args["max-num-seqs"] == 8
        assert info.effective_args["max-model-len"] == LENGTH
        assert info.effective_args["enable-prefix-caching"] is True
        assert "gpu-memory-utilization" in info.effective_args

    def test_a_flush_forgets_prefixes(
        self, engine: VllmEngine, good: Mapping[str, Any], tmp_path: Path
    ) -> None:
        with self._launch(engine, good, tmp_path) as server:
            body = {"model": server.model, "prompt": "the same prefix " * 60, "max_tokens": 2}

            def hits_of_another() -> float:
                before = _prefix_hits(server.base_url)
                call(f"{server.base_url}/v1/completions", body=body, timeout_s=60)
                return _prefix_hits(server.base_url) - before

            assert hits_of_another() == 0
            assert hits_of_another() > 0
            server.flush_cache()
            assert hits_of_another() == 0

    def test_prefix_caching_is_switched_off_by_false(self, engine: VllmEngine, tmp_path: Path) -> None:
        with self._launch(engine, {"enable-prefix-caching": False}, tmp_path) as server:
            assert server.info.effective_args["enable-prefix-caching"] is False

    def test_what_its_parser_refuses_is_refused_before_a_start(self, engine: VllmEngine) -> None:
        engine.check({"max_num_seqs": 8, "enable-prefix-caching": False, "compilation-config.mode": 0})
        for config in ({"max-num-sequences": 8}, {"scheduling-policy": "lpm"}, {"block-size": "big"}):
            with pytest.raises(TrialFailed) as failed:
                engine.check(config)
            assert failed.value.failure.cause is Cause.INVALID_FLAGS

    @pytest.mark.parametrize(
        ("config", "cause"),
        [
            ({"kv-cache-dtype": "nosuch"}, Cause.INVALID_FLAGS),
            ({"tensor-parallel-size": 3}, Cause.INVALID_FLAGS),
            ({"max-num-batched-tokens": 4, "max-num-seqs": "8"}, Cause.INVALID_FLAGS),
        ],
    )
    def test_a_failed_start_has_its_cause(
        self, engine: VllmEngine, config: Mapping[str, Any], cause: Cause, tmp_path: Path
    ) -> None:
        with pytest.raises(TrialFailed) as failed, self._launch(engine, config, tmp_path):
            pass
        assert failed.value.failure.cause is cause


def _prefix_hits(base_url: str) -> float:
    lines = str(call(f"{base_url}/metrics")).splitlines()
    [value] = [line.split()[-1] for line in lines if line.startswith("vllm:prefix_cache_hits_total")]
    return float(value)

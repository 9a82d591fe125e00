"""A real genai-bench on the simulator: `GENAI_BENCH=/opt/genai/bin/genai-bench pytest tests/genai_bench`.

GENAI_BENCH_TOKENIZER names the folder of a tokenizer, of any model.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tuner.engines import make_engine
from tuner.evaluate import evaluate
from tuner.load import LOAD_GENERATORS
from tuner.task import make_task

pytestmark = pytest.mark.timeout(600)


def test_a_trial_with_it_resembles_one_with_the_native_client(tmp_path: Path) -> None:
    latencies = {}
    for tool in ("genai-bench", "native"):
        load = {"num_concurrency": [4], "traffic_scenarios": ["D(100,100)"], "max_requests_per_iteration": 40}
        tokenizer = os.environ["GENAI_BENCH_TOKENIZER"]
        task = make_task({"benchmark": {**load, "tool": tool, "model_tokenizer": tokenizer}})
        [last] = evaluate(
            task,
            {},
            engine=make_engine(task),
            load=LOAD_GENERATORS[tool],
            seed=0,
            gpu_ids=[],
            log_path=tmp_path / f"{tool}.log",
        )
        assert last.failure is None and last.step is not None
        metrics = last.step.metrics
        assert metrics.requests_ok >= 40 and metrics.requests_failed == 0
        assert metrics.output_tok_s > 0 and metrics.latency is not None
        latencies[tool] = metrics.latency.p50
    assert latencies["genai-bench"] == pytest.approx(latencies["native"], rel=0.3)

"""The program that holds the simulator against measured rows; here against rows that it made itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuner.engines.simulator.constants import Constants
from tuner.engines.simulator.virtual import build, closed_loop

REPOSITORY = Path(__file__).parent.parent
HEAD = "model_path,system,isl,osl,gemm_quant_mode,backend_version,batch_size,tp_size,pp_size,silicon_ttft_ms,"
TRUTH = Constants(memory=0.6, decode_s=4e-3)


def row(model: str, system: str, tp: int, batch: int, isl: int, osl: int) -> str:
    """What a server with other constants would have shown."""
    flags = f"--gpu {system.split('_', maxsplit=1)[0]} --tp-size {tp} --noise 0 --mem-fraction-static 0.8"
    _, _, scheduler = build(["--model-path", model, *flags.split()], TRUTH)
    load = (((-i, *range(isl - 1)), osl) for i in range(1, 4 * batch + 1))
    loop = closed_loop(scheduler, load, batch)
    latencies = f"{loop.ttft_s * 1e3},{loop.tpot_s * 1e3}"
    return f"{model},{system},{isl},{osl},,0.5.1.post1,{batch},{tp},1,{latencies}"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    lines = [
        row(model, system, tp, batch, 200, 20)
        for model, system in (("llama-3.1-8b", "h100_sxm"), ("qwen3-14b", "h200_sxm"))
        for tp in (1, 2)
        for batch in (4, 32)
    ]
    others = ["nosuch/model,h100_sxm,200,20,,0.5.1,4,1,1,1,1", "llama-3.1-8b,tpu,200,20,,0.5.1,4,1,1,1,1"]
    path.write_text("\n".join([HEAD + "silicon_tpot_ms", *lines, *others]))
    return path


def judged(rows: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "benchmarks/simulator_fidelity.py", "--rows", str(rows), "--json", *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120)
    assert "left out (1 rows): nosuch/model on h100 tp 1" in done.stderr
    assert "left out (1 rows): tpu" in done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_errors_are_shares_by_model_gpu_and_tp(rows: Path) -> None:
    groups = judged(rows)
    assert groups.keys() == {
        "all",
        *("llama-3.1-8b h100", "llama-3.1-8b h100 tp1", "llama-3.1-8b h100 tp2"),
        *("qwen3-14b h200", "qwen3-14b h200 tp1", "qwen3-14b h200 tp2"),
    }
    assert groups["all"]["rows"] == 8
    assert 0.1 < groups["all"]["tpot_mape"] < 0.5
    assert groups["all"]["spearman"] > 0.9


def test_what_was_fitted_to_others_is_nearer(rows: Path) -> None:
    before, schemes = judged(rows)["all"], judged(rows, "--cross-validate")
    assert set(schemes) == {"each model and GPU left out", "each tp left out", "each fifth left out"}
    for name, found in schemes.items():
        assert found["rows"] == 8
        assert found["tpot_mape"] < before["tpot_mape"] / 2, name
    assert judged(rows, "--fit")["all"]["tpot_mape"] < 0.05

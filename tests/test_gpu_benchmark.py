"""`benchmarks/gpu` as far as it shows without a GPU: what is carried there, and its goes on the simulator."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.gpu.bundle import chosen, pack, pins
from benchmarks.gpu.export import noise
from benchmarks.gpu.install import Missing, make_environment, unpack, whole
from benchmarks.gpu.model import write_model
from tuner.engines.simulator.models import find_model
from tuner.results import ResultStore
from tuner.space import config_key

REPOSITORY = Path(__file__).parent.parent
KERNELS = {
    "sgl_kernel/__init__.py": b"VERSION = 1\n",
    "sgl_kernel/flash_ops.abi3.so": os.urandom(50_000),
    "sgl_kernel/sm90/common_ops.abi3.so": os.urandom(5_000),
    "sgl_kernel/sm100/common_ops.abi3.so": os.urandom(5_000),
}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel that has the folders of sglang-kernel's."""
    about = "sglang_kernel-1.0.dist-info"
    files = {
        **KERNELS,
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: sglang-kernel\nVersion: 1.0\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    sums = {name: base64.urlsafe_b64encode(hashlib.sha256(text).digest()) for name, text in files.items()}
    record = [f"{name},sha256={sums[name].decode().rstrip('=')},{len(files[name])}\n" for name in files]
    record.append(f"{about}/RECORD,,\n")
    path = tmp_path / "sglang_kernel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{about}/RECORD", "".join(record))
    return path


def test_a_slimmed_wheel_travels_in_parts_and_is_installed(wheel: Path, tmp_path: Path) -> None:
    parts = pack([wheel], tmp_path / "bundle", 2_000, "sm90")
    assert len(parts) > 1 and all(part.stat().st_size <= 2_000 for part in parts)
    carried = tmp_path / "elsewhere"
    carried.mkdir()
    for part in (tmp_path / "bundle").iterdir():
        shutil.copy(part, carried)
    python = make_environment(unpack(whole(carried), tmp_path / "wheels"), tmp_path / "venv")
    [site] = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    [record] = site.glob("sglang_kernel-*/RECORD")
    with record.open() as lines:
        named = {name for name, *_ in csv.reader(lines)}
    assert all((site / name).exists() for name in named)
    kept = {name for name in KERNELS if (site / name).exists()}
    assert kept == {"sgl_kernel/__init__.py", "sgl_kernel/sm90/common_ops.abi3.so"}
    assert (site / "sgl_kernel/sm90/common_ops.abi3.so").read_bytes() == KERNELS[
        "sgl_kernel/sm90/common_ops.abi3.so"
    ]
    # The environment has its own packages, and those of the interpreter that made it.
    asked = "import sgl_kernel, pytest, tuner; print(sgl_kernel.VERSION, pytest.__version__)"
    told = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert told.stdout.split() == ["1", distribution("pytest").version]


def test_a_part_that_did_not_come_is_named(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"benchmarks\.gpu\.bundle"):
        whole(tmp_path)
    parts = pack([wheel], tmp_path, 2_000, "sm90")
    parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"?")
    with pytest.raises(Missing, match="otherwise than they were sent: part-01"):
        whole(tmp_path)
    parts[0].unlink()
    with pytest.raises(Missing, match=r"not in .*: part-00"):
        whole(tmp_path)


def test_wheels_of_an_earlier_lock_stay_behind(tmp_path: Path) -> None:
    for name in (
        "openai_harmony-0.0.4-py3-none-any.whl",
        "openai_harmony-0.0.8-py3-none-any.whl",
        "a-1-py3-none-any.whl",
    ):
        (tmp_path / name).touch()
    assert [path.name for path in chosen(tmp_path, ["openai-harmony==0.0.4", "b==1"])] == [
        "openai_harmony-0.0.4-py3-none-any.whl"
    ]


def test_fewer_parts_than_before_leave_none_behind(wheel: Path, tmp_path: Path) -> None:
    pack([wheel], tmp_path, 1_000, "sm90")
    parts = pack([wheel], tmp_path, 100_000, "sm90")
    assert whole(tmp_path) == parts
    assert {path.name for path in tmp_path.glob("part*")} == {"parts.json", "part-00"}


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_what_is_brought_has_sglang_and_leaves_pytorch_to_the_machine(python: str) -> None:
    names = [re.split(r"[=<>~]", pin)[0] for pin in pins(python, without=["scipy"])]
    assert {"sglang", "sglang-kernel", "flashinfer-python", "ray", "transformers", "pytest"} <= {*names}
    assert not {"torch", "torchvision", "triton", "scipy", "colorama"} & {*names}
    assert not [name for name in names if name.startswith("nvidia-") and name != "nvidia-ml-py"]
    assert len(names) == len({*names})


@pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-3.1-8b"])
def test_a_made_up_model_has_the_sizes_of_its_namesake_and_a_whole_vocabulary(
    name: str, tmp_path: Path
) -> None:
    named = find_model(name)
    made = find_model(str(write_model(tmp_path / name, named)))
    assert (made.hidden, made.layers, made.heads, made.kv_heads) == (
        named.hidden,
        named.layers,
        named.heads,
        named.kv_heads,
    )
    assert (made.head_size, made.intermediate, made.tied) == (named.head_size, named.intermediate, named.tied)
    tokens = json.loads((tmp_path / name / "tokenizer.json").read_text())
    numbers = [*tokens["model"]["vocab"].values(), *(token["id"] for token in tokens["added_tokens"])]
    assert sorted(numbers) == list(range(named.vocabulary))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with benchmarks/gpu, its grid and its study cut short."""
    folder = tmp_path_factory.mktemp("checkout")
    here = folder / "benchmarks" / "gpu"
    shutil.copytree(REPOSITORY / "benchmarks" / "gpu", here, ignore=shutil.ignore_patterns("__pycache__"))
    for name, cuts in {
        "surface.json": {
            r'"mem-fraction-static": \[.*\]': '"mem-fraction-static": [0.07, 0.999]',
            r'"chunked-prefill-size": \[.*\]': '"chunked-prefill-size": [512, 8192]',
            r'"schedule-policy": \[.*\]': '"schedule-policy": ["lpm"]',
            r'"confirm": \d+': '"confirm": 2',
            r'"max_time_per_iteration": \d+': '"max_time_per_iteration": 0.5',
            r'"warmup_requests": \d+': '"warmup_requests": 0',
            r'"num_concurrency": \[.*\]': '"num_concurrency": [2, 4]',
        },
        "proof.json": {r'"max_iterations": \d+, "confirm": \d+': '"max_iterations": 2, "confirm": 0'},
    }.items():
        text = (here / name).read_text()
        for pattern, cut in cuts.items():
            text, found = re.subn(pattern, cut, text)
            assert found == 1, pattern
        (here / name).write_text(text)
    return folder


def go(checkout: Path, *options: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), str(REPOSITORY)])}
    environ.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "benchmarks.gpu", "--engine", "simulator", *options]
    return subprocess.Popen(
        command, cwd=checkout, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.ray
@pytest.mark.slow
def test_a_go_that_is_cut_is_gone_on_with_elsewhere_and_its_surface_is_searched(
    checkout: Path, tmp_path: Path
) -> None:
    kept, work = tmp_path / "kept.tar.xz", checkout / ".gpu" / "simulator"
    trials = work / "studies" / "gpu-surface" / "trials"
    with go(checkout, "--only", "models", "--only", "surface", "--keep", str(kept)) as first:
        deadline = time.monotonic() + 120
        while not (trials / "00000.parquet").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        first.send_signal(signal.SIGINT)
        assert first.stdout is not None
        told = first.stdout.read()
    assert first.returncode == 130, told
    assert re.search(r"surface +remains, \d trial", told), told
    measured = {path.name: path.read_bytes() for path in trials.glob("[0-9]*.parquet")}
    shutil.rmtree(work)  # another machine

    with go(checkout, "--only", "surface", "--only", "export", "--keep", str(kept)) as second:
        told, _ = second.communicate()
    assert second.returncode == 0, told
    assert re.search(r"surface +done.*\n.*proof +remains.*\n.*export +done", told), told
    for name, content in measured.items():
        assert (trials / name).read_bytes() == content
    results = ResultStore(work / "studies", "gpu-surface").read()
    searched = results.trials[results.trials["kind"] == "search"]
    assert len(searched) == searched["config"].map(config_key).nunique() == 16
    failed = searched["failure_cause"].notna()
    assert (failed == [config["mem-fraction-static"] == 0.999 for config in searched["config"]]).all()
    assert {freedom for _, freedom in noise(results).values()} == {4}

    surfaces = work / "measured" / "surfaces"
    surface = pd.read_parquet(surfaces / "gpu-surface.parquet")
    assert len(surface) == (~failed).sum() and (surface["value"] > 0).all()
    assert {path.name for path in surfaces.iterdir()} == {
        f"gpu-surface{suffix}.parquet" for suffix in ("", "-c2", "-c4")
    }
    readme = (work / "measured" / "README.md").read_text()
    assert "Simulated, not measured" in readme and "8 of 16 worked" in readme and "8 out of memory" in readme
    search = ["search_quality.py", "--surfaces", str(surfaces), "--seeds", "1", "--strategies", "grid"]
    assert json.loads(benchmark(*search, "--json"))["grid"]["hit8"] == 1
    fidelity = ["simulator_fidelity.py", "--rows", str(work / "measured" / "levels.parquet")]
    rows = json.loads(benchmark(*fidelity, "--json"))["all"]["rows"]
    assert rows == 2 * results.trials["failure_cause"].isna().sum()


def benchmark(program: str, *options: str) -> str:
    command = [sys.executable, f"benchmarks/{program}", *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_all_of_it_runs_in_virtual_time_and_once(checkout: Path) -> None:
    for _ in range(2):
        with go(checkout, "--virtual") as whole_go:
            told, _ = whole_go.communicate()
        assert whole_go.returncode == 0, told
        assert "remains" not in told
    assert "==" not in told  # nothing was left to do
    assert (checkout / ".gpu" / "simulator-virtual" / "proof.html").stat().st_size > 10_000


def test_without_a_gpu_it_says_so(checkout: Path) -> None:
    paths = {"PYTHONPATH": os.pathsep.join([str(checkout), str(REPOSITORY)]), "PATH": str(checkout)}
    environ = {**os.environ, **paths}  # where there is no nvidia-smi, whatever this machine has
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no NVIDIA GPU here")
    assert "remains" in done.stdout

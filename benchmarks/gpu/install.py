"""An environment of the bundle's wheels beside the PyTorch of this machine, without a network.

    python3 -m benchmarks.gpu.install      # by the interpreter that has PyTorch; the environment is .gpu/venv

Needs nothing but the standard library and pip. The environment sees its own packages first, then this
machine's, so PyTorch, torchvision and Triton are found there, wherever they are: also in another environment.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
BUNDLE, VENV = REPOSITORY / ".gpu" / "bundle", REPOSITORY / ".gpu" / "venv"

# What the environment must have when it is made, in the order in which it is missed, with what to do.
IMPORTED = {
    "torch": "run this with the interpreter that has PyTorch",
    "torchvision": "SGLang imports it: install the one of this machine's PyTorch",
    "triton": "SGLang imports it: install the one of this machine's PyTorch",
    "ray": "is in the bundle: make the environment anew",
    "tuner.cli": "run this in the repository's checkout",
    "sgl_kernel": "was the bundle made for this machine's chip (benchmarks.gpu.bundle --chip) and CUDA?",
    "cuda.bindings.driver": "is in the bundle: make the environment anew",
    "flashinfer.sampling": "is in the bundle: make the environment anew",
    "sglang.srt.entrypoints.http_server": "see the error: the bundle may lack a package",
}
PROGRAMS = {
    "nvcc": "SGLang builds kernels when it first starts: the CUDA toolkit, in PATH or below CUDA_HOME",
    "g++": "SGLang builds kernels when it first starts: install a C++ compiler",
}


class Missing(Exception):
    """Something that this machine must have is not there; the message says what to do."""


def whole(bundle: Path) -> list[Path]:
    """The bundle's parts in order; Missing, with their names, where some did not come or not whole."""
    try:
        sums: dict[str, str] = json.loads((bundle / "parts.json").read_text())
    except FileNotFoundError:
        raise Missing(
            f"no bundle in {bundle}: make it with `python -m benchmarks.gpu.bundle` where there is a network"
        ) from None
    absent = [name for name in sums if not (bundle / name).is_file()]
    if absent:
        raise Missing(f"of the bundle's {len(sums)} parts these are not in {bundle}: {', '.join(absent)}")
    torn = [
        name
        for name, told in sums.items()
        if hashlib.sha256((bundle / name).read_bytes()).hexdigest() != told
    ]
    if torn:
        raise Missing(f"parts of the bundle came otherwise than they were sent: {', '.join(torn)}")
    return [bundle / name for name in sums]


def extract(tar: tarfile.TarFile, folder: Path) -> None:
    """All of an archive, by the safe filter where this Python has it (from 3.11.4)."""
    tar.extraction_filter = getattr(tarfile, "data_filter", None)
    tar.extractall(folder)


def unpack(parts: Sequence[Path], wheels: Path) -> list[Path]:
    """The wheels of the archive that was cut into `parts`."""
    archive = io.BytesIO(b"".join(part.read_bytes() for part in parts))
    with lzma.open(archive) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
        extract(tar, wheels)
    return sorted(wheels.glob("*.whl"))


def make_environment(wheels: Sequence[Path], folder: Path) -> Path:
    """A new environment of exactly these wheels over what this interpreter has; returns its interpreter."""
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, symlinks=True, with_pip=False)  # Debian's Python has no pip to put into it
    python = folder / "bin" / "python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        str(python),
        "install",
        "-q",
    ]
    plain = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--ignore-installed"]
    subprocess.run([*pip, *plain, *map(str, wheels)], check=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    seen = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    (site / "beside.pth").write_text("\n".join([str(REPOSITORY), *seen]) + "\n")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # Without byte code every start of SGLang takes longer; -j 0 uses all cores, which pip does not.
    subprocess.run([python, "-m", "compileall", "-q", "-j", "0", site], check=False, **quiet)
    return python


def libraries() -> dict[str, str]:
    """Where this machine's PyTorch has CUDA's libraries, as a variable: sglang-kernel names some of them that
    PyTorch loads late or never. Empty where they are not packages; they are the system's then."""
    found = [str(path) for entry in sys.path for path in sorted(Path(entry).glob("nvidia/*/lib"))]
    before = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": os.pathsep.join([*([before] if before else []), *found])} if found else {}


def lacks(python: Path) -> str:
    """The first thing that the environment or the machine is short of, and what to do; empty if nothing."""
    env = {**os.environ, **libraries()}
    for module, remedy in IMPORTED.items():
        tried = subprocess.run(
            [python, "-c", f"import {module}"], env=env, capture_output=True, text=True, check=False, cwd="/"
        )
        if tried.returncode:
            return f"{module} cannot be imported: {remedy}\n{tried.stderr[-2000:]}"
    gpu = "import torch; print(torch.cuda.get_device_name(0))"
    tried = subprocess.run([python, "-c", gpu], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"PyTorch sees no GPU\n{tried.stderr[-2000:]}"
    for program, remedy in PROGRAMS.items():
        if not (shutil.which(program) or Path("/usr/local/cuda/bin", program).exists()):
            return f"no program {program}: {remedy}"
    return ""


def install(bundle: Path = BUNDLE, folder: Path = VENV) -> Path:
    """Makes the environment out of the bundle; Missing where something is not there."""
    parts = whole(bundle)
    wheels = folder.with_name("wheels")
    try:
        python = make_environment(unpack(parts, wheels), folder)
    finally:
        shutil.rmtree(wheels, ignore_errors=True)
    if missing := lacks(python):
        raise Missing(missing)
    return python


if __name__ == "__main__":
    try:
        print(install())
    except Missing as missing:
        sys.exit(f"error: {missing}")

"""Wheels for a GPU machine that has PyTorch and no network, in parts that can be carried one by one.

    python -m benchmarks.gpu.bundle                                  # for Python 3.12 on x86-64, sm90
    python -m benchmarks.gpu.bundle --python-version 3.11 --part-size 100
    python -m benchmarks.gpu.bundle --without numpy --without scipy  # the machine has these as well

Runs where pip reaches an index. The wheels are those of requirements.lock (this program and what SGLang
imports when it starts) and requirements-alone.txt (SGLang, its kernels, FlashInfer); PyTorch, torchvision and
Triton are the machine's own. What is not needed there is taken out of the large ones, and all of them are
packed together, which makes them a third smaller: one archive (tar, xz), cut into `part-00`, `part-01` ...
beside `parts.json`, which names them. `benchmarks/gpu/install.py` makes an environment of them.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

HERE = Path(__file__).parent
BUNDLE = HERE.parent.parent / ".gpu" / "bundle"
MACHINE = ("torch", "torchvision", "torchaudio", "triton")  # the machine has its own, with their nvidia-*
CHIPS = ("sm90", "sm100")  # that sglang-kernel has common ops for: Hopper, and all others

# What is taken out, by the beginning of a wheel's name. Of sglang-kernel all compiled operations but the
# chip's common ones: the others (FlashAttention 3, FlashMLA, sparse attention, streams) are imported where
# they are used.
SLIMMED = {
    "sglang_kernel-": ["sgl_kernel/*.so"],
    "xgrammar-": ["*.a"],
    "ray-": ["ray/jars/*", "*.js.map"],  # Java, and what debuggers read
}


def pins(python_version: str, without: Sequence[str] = ()) -> list[str]:
    """`name==version` of all wheels that a Linux machine with this Python needs beside `MACHINE`."""
    target = {
        "python_version": python_version,
        "python_full_version": f"{python_version}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }
    lines = [
        line.partition("#")[0].strip()
        for name in ("requirements.lock", "requirements-alone.txt")
        for line in (HERE / name).read_text().splitlines()
    ]
    found = [Requirement(line) for line in lines if line]
    left_out = {*MACHINE, *without}
    return [
        f"{one.name}{one.specifier}"
        for one in found
        if one.name not in left_out and (one.marker is None or one.marker.evaluate(target))
    ]


def download(wanted: Sequence[str], folder: Path, python_version: str) -> None:
    """Has pip fetch exactly these wheels for Linux on x86-64, without what they depend on."""
    # pip takes a platform tag as it stands, and a wheel names the oldest C library that it runs with.
    tags = [f"manylinux_2_{minor}_x86_64" for minor in range(5, 40)]
    platforms = [*tags, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"),
        *("--only-binary=:all:", "--implementation", "cp", "--python-version", python_version),
        *(word for platform in platforms for word in ("--platform", platform)),
        *("--dest", str(folder), *wanted),
    ]
    subprocess.run(command, check=True)


def chosen(folder: Path, wanted: Sequence[str]) -> list[Path]:
    """The wheels in `folder` that are wanted: those of an earlier lock may lie beside them."""
    specifiers = {canonicalize_name(one.name): one.specifier for one in map(Requirement, wanted)}
    found = []
    for path in sorted(folder.glob("*.whl")):
        name, version, *_ = parse_wheel_filename(path.name)
        if name in specifiers and specifiers[name].contains(version):
            found.append(path)
    return found


def slim(wheel: Path, chip: str) -> bytes:
    """The wheel without what `SLIMMED` names, uncompressed, for the archive around it compresses better.

    Its RECORD has no line of what was taken out, so that it is a valid wheel of the same name.
    """
    patterns = next((own for start, own in SLIMMED.items() if wheel.name.startswith(start)), [])
    made = io.BytesIO()
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(made, "w") as new:
        gone = {
            name
            for name in old.namelist()
            if any(fnmatch(name, pattern) for pattern in patterns)
            and not name.startswith(f"sgl_kernel/{chip}/")
        }
        for entry in old.infolist():
            if entry.filename in gone:
                continue
            content = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                kept = [line for line in lines if line.rpartition(",")[0].rpartition(",")[0] not in gone]
                content = "".join(kept).encode()
            entry.compress_type = zipfile.ZIP_STORED
            new.writestr(entry, content)
    return made.getvalue()


def pack(wheels: Sequence[Path], bundle: Path, part_bytes: int, chip: str) -> list[Path]:
    """Writes the parts and `parts.json` into `bundle`, in place of those that were there."""
    bundle.mkdir(parents=True, exist_ok=True)
    for old in bundle.glob("part*"):
        old.unlink()
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w:xz", preset=6) as tar:
            for wheel in wheels:
                content = slim(wheel, chip)
                about = tarfile.TarInfo(wheel.name)
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
                print(f"{about.size / 2**20:8.1f} MiB unpacked  {wheel.name}", flush=True)
        archive.seek(0)
        parts = []
        while content := archive.read(part_bytes):
            parts.append(bundle / f"part-{len(parts):02}")
            parts[-1].write_bytes(content)
    sums = {part.name: hashlib.sha256(part.read_bytes()).hexdigest() for part in parts}
    (bundle / "parts.json").write_text(json.dumps(sums, indent=1))
    return parts


def main() -> None:
    """Downloads, slims, packs and says what became of it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.bundle",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python-version", default="3.12", help="of the GPU machine [default: 3.12]")
    parser.add_argument("--chip", choices=CHIPS, default="sm90", help="[default: sm90, H100 and H200]")
    parser.add_argument("--part-size", type=float, default=48, metavar="MIB", help="[default: 48]")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="the machine has it")
    parser.add_argument("--to", type=Path, default=BUNDLE, metavar="DIR", help="[default: .gpu/bundle]")
    args = parser.parse_args()
    wheels = args.to.parent / f"wheels-{args.python_version}"
    wanted = pins(args.python_version, args.without)
    download(wanted, wheels, args.python_version)
    found = chosen(wheels, wanted)
    parts = pack(found, args.to, int(args.part_size * 2**20), args.chip)
    before, after = (sum(path.stat().st_size for path in paths) for paths in (found, parts))
    print(f"{len(found)} wheels, {before / 2**20:.0f} MiB: now {after / 2**20:.0f} MiB in {len(parts)} parts")
    print(f"bring {args.to} to the GPU machine, and run `python -m benchmarks.gpu` there")


if __name__ == "__main__":
    main()

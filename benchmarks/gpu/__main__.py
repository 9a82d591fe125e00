"""SGLang measured on a GPU, in goes of some minutes: one command that goes on where it stopped.

    python3 -m benchmarks.gpu                        # by the interpreter that has PyTorch, in the checkout
    python3 -m benchmarks.gpu --seconds 540 --keep /backup/gpu.tar.xz
    python3 -m benchmarks.gpu --only surface
    python  -m benchmarks.gpu --engine simulator     # the same without a GPU, to see that it works
    python  -m benchmarks.gpu --engine simulator --virtual

Steps, each done once: `install` (the bundle's wheels, see benchmarks/gpu/bundle.py), `models`, `serve` (one
configuration in the foreground: where SGLang does not start, nothing else is tried), `surface` (the grid of
surface.json), `proof` (the study of proof.json), `export` (surfaces, levels and README), `contract`
(tests/sglang on the GPU, uncut: it waits for a go that has the time). All results are below .gpu/ENGINE; with
--keep they are read from that archive where there are none, and written to it after every go, so that the
next go can be on another machine. A study is interrupted at the end of a go as by Ctrl-C: what was measured
is kept, the trial that ran is measured again. Ends with exit code 0 when all is done, 75 when another go is
needed, 1 where something is amiss.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.gpu.install import REPOSITORY, VENV, Missing, extract, install, libraries

HERE = Path(__file__).parent
MODELS, SERVED = REPOSITORY / ".gpu" / "models", ("llama-3.2-1b", "llama-3.1-8b")
STUDIES = ("surface", "proof")
AGAIN = 75  # EX_TEMPFAIL
ENDED = (0, 3, 4)  # exit codes of a study that is through, see docs/troubleshooting.md
CONTRACT_S = 480.0  # of 18 starts, at 15 to 25 s each
GRACE_S = 40.0  # for a study to end its engine


@dataclass(frozen=True)
class Go:
    """What a go has: the engine, where things are, and until when."""

    engine: str
    virtual: bool
    folder: Path  # of the results
    ends: float  # on the monotonic clock
    python: Path = Path(sys.executable)
    cut: list[str] = field(default_factory=list)  # steps that wait for another go

    @property
    def left_s(self) -> float:
        return self.ends - time.monotonic()

    @property
    def environ(self) -> dict[str, str]:
        before = {"PATH": self.python.parent, "PYTHONPATH": REPOSITORY}
        paths = {
            name: os.pathsep.join([str(first), *filter(None, [os.environ.get(name)])])
            for name, first in before.items()
        }
        kept = {"XDG_DATA_HOME": "data", "TVM_FFI_CACHE_DIR": "kernels", "TRITON_CACHE_DIR": "triton"}
        folders = {name: str(self.folder / place) for name, place in kept.items()}
        return {**os.environ, **libraries(), **paths, **folders}

    def run(self, *words: str, env: Mapping[str, str] | None = None) -> int | None:
        """Exit code of `python -m WORDS`; None where its time was up, after it was interrupted."""
        command = [str(self.python), "-m", *words]
        environ = {**self.environ, **(env or {})}
        # A group of its own: a terminal's Ctrl-C comes to us alone, and is passed on once.
        with subprocess.Popen(command, cwd=REPOSITORY, env=environ, process_group=0) as process:
            try:
                return process.wait(max(self.left_s - GRACE_S, 1.0))
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as cut:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(GRACE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                if isinstance(cut, KeyboardInterrupt):
                    raise
        return None

    @property
    def how(self) -> list[str]:
        """The engine, as options of `tuner`."""
        return ["--engine", self.engine, *(["--virtual"] if self.virtual else [])]


def installed(_: Go) -> bool:
    """Whether the environment is there, on this machine."""
    return (VENV / ".installed").exists()


def do_install(_: Go) -> bool:
    """Makes the environment."""
    install()
    (VENV / ".installed").touch()
    return True


def modelled(_: Go) -> bool:
    """Whether the models' folders are there."""
    return all((MODELS / name / "tokenizer.json").exists() for name in SERVED)


def do_models(go: Go) -> bool:
    """Writes the folders that stand for models."""
    return all(go.run("benchmarks.gpu.model", name, str(MODELS / name)) == 0 for name in SERVED)


def served(_: Go) -> bool:
    """Whether one configuration has been measured, on this machine."""
    return (VENV / ".served").exists()


def do_serve(go: Go) -> bool:
    """Measures one configuration in the foreground; the first start builds SGLang's kernels."""
    code = go.run("tuner.cli", "trial", str(HERE / "surface.json"), *go.how)
    if code is None:
        return False
    if code:
        raise Missing(f"SGLang served no load, see above and the log below {go.folder / 'data'}")
    (VENV / ".served").touch()
    return True


def studied(study: str, go: Go) -> bool:
    """Whether the study is through."""
    return (go.folder / f"{study}.ended").exists()


def do_study(study: str, go: Go) -> bool:
    """Begins a study or goes on with it, a trial at a time, for they would disturb each other."""
    task, root = HERE / f"{study}.json", str(go.folder / "studies")
    options = ["--results", root, "--study", f"gpu-{study}", "--resume", "--num-gpus", "1"]
    code = go.run("tuner.cli", "run", str(task), *go.how, *options, "--max-concurrent", "1")
    if code is None or code == 128 + signal.SIGINT:
        return False
    if code not in ENDED:
        raise Missing(f"the study {study} ended with exit code {code}, see above")
    go.run(
        "tuner.cli", "report", f"gpu-{study}", "--results", root, "--html", str(go.folder / f"{study}.html")
    )
    (go.folder / f"{study}.ended").touch()
    return True


def exported(go: Go) -> bool:
    """Whether the surface has been written."""
    return (go.folder / "measured" / "README.md").exists()


def do_export(go: Go) -> bool:
    """Writes the surface, once its study is through."""
    if not studied("surface", go):
        return False
    root, to = str(go.folder / "studies"), str(go.folder / "measured")
    return go.run("benchmarks.gpu.export", root, "gpu-surface", "--to", to) == 0


def kept_contract(go: Go) -> bool:
    """Whether the contract's outcome is there, whatever it is."""
    return (go.folder / "contract.xml").exists()


def do_contract(go: Go) -> bool:
    """Runs tests/sglang against this SGLang, uncut."""
    if go.left_s < CONTRACT_S:
        return False
    found = go.folder / "contract.xml"
    env = {"SGLANG_PYTHON": str(go.python), "SGLANG_DEVICE": "cuda"}
    code = go.run("pytest", "tests/sglang", "--durations=0", f"--junitxml={found}", env=env)
    if code is None:
        found.unlink(missing_ok=True)
        return False
    if code:
        print(f"tests/sglang: some failed; {found} has them, and without that file they are run again")
    return True


@dataclass(frozen=True)
class Step:
    """Something to be done once."""

    name: str
    done: Callable[[Go], bool]
    do: Callable[[Go], bool]  # False where it waits for another go
    simulated: bool = True  # whether it is one of the simulator as well


STEPS = (
    Step("install", installed, do_install, simulated=False),
    Step("models", modelled, do_models),
    Step("serve", served, do_serve, simulated=False),
    Step("surface", partial(studied, "surface"), partial(do_study, "surface")),
    Step("proof", partial(studied, "proof"), partial(do_study, "proof")),
    Step("export", exported, do_export),
    Step("contract", kept_contract, do_contract, simulated=False),
)


def steps_of(go: Go) -> list[Step]:
    """What is to be done with this engine."""
    return [step for step in STEPS if step.simulated or go.engine == "sglang"]


def standing(go: Go) -> str:
    """A line for each step."""
    lines = []
    for step in steps_of(go):
        measured = len(list((go.folder / "studies" / f"gpu-{step.name}" / "trials").glob("[0-9]*.parquet")))
        told = f", {measured} trials" if step.name in STUDIES else ""
        lines.append(f"  {step.name:9} {'done' if step.done(go) else 'remains'}{told}")
    return "\n".join(lines)


def restore(archive: Path | None, folder: Path) -> None:
    """Takes the results of earlier goes from the archive, where there are none here."""
    if archive and archive.exists() and not folder.exists():
        with tarfile.open(archive) as tar:
            extract(tar, folder.parent)
    folder.mkdir(parents=True, exist_ok=True)


def save(archive: Path | None, folder: Path) -> None:
    """Packs the results into the archive, whole or not at all."""
    if archive:
        half = archive.with_name(f"{archive.name}.part")
        with tarfile.open(half, "w:xz", preset=1) as tar:
            tar.add(folder, folder.name)
        half.replace(archive)


def go_on(go: Go, only: list[str]) -> Go:
    """Does what is left, as far as the time goes."""
    for step in steps_of(go):
        if (only and step.name not in only) or step.done(go):
            continue
        if go.left_s < 2 * GRACE_S:
            go.cut.append(step.name)
            continue
        print(f"== {step.name}, {go.left_s:.0f} s left", flush=True)
        if not step.do(go):
            go.cut.append(step.name)
    return go


def main() -> int:
    """One go."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engine", choices=["sglang", "simulator"], default="sglang")
    parser.add_argument("--virtual", action="store_true", help="of the simulator: in virtual time")
    parser.add_argument("--seconds", type=float, default=540, help="that this go may take [default: 540]")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="archive of the results, read and written")
    parser.add_argument("--only", action="append", choices=[step.name for step in STEPS], help="this step")
    args = parser.parse_args()
    folder = REPOSITORY / ".gpu" / (f"{args.engine}-virtual" if args.virtual else args.engine)
    python = Path(sys.executable) if args.engine == "simulator" else VENV / "bin" / "python"
    go = Go(args.engine, args.virtual, folder, time.monotonic() + args.seconds, python)
    restore(args.keep, folder)
    try:
        if args.engine == "sglang" and shutil.which("nvidia-smi") is None:
            raise Missing("no NVIDIA GPU here (no nvidia-smi); --engine simulator runs without one")
        go_on(go, args.only or [])
    except Missing as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        save(args.keep, folder)
        print(standing(go))
    return AGAIN if go.cut else 0


if __name__ == "__main__":
    sys.exit(main())

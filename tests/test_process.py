"""The engine's process: however its starter ends, nothing of the tree below it is left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import processes
import pytest

from tuner.engines import process as engine_process
from tuner.engines.process import EngineProcess
from tuner.engines.server import launched
from tuner.failures import Cause, Failure, TrialFailed

ROOT = Path(__file__).parents[1]

# Seven processes that ignore SIGTERM: a child, a child in a session of its own, a daemon, and a child of
# each. The first ends, with exit code 3, when the file that it is told of is there.
TREE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for kind in ("child", "session", "daemon"):
    if os.fork() == 0:
        if kind != "child":
            os.setsid()
        if kind == "daemon" and os.fork():
            os._exit(0)
        os.fork()
        print("up", flush=True)
        time.sleep(600)
        os._exit(0)
print("up", flush=True)
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
sys.exit(3)
"""
STARTER = """
import os, sys, time
from pathlib import Path
from tuner.engines.process import EngineProcess
argv, log, how = sys.argv[4:], Path(sys.argv[1]), sys.argv[2]
process = EngineProcess(argv, env=os.environ, log_path=log, grace_s=0.2)
while process.log().count("up") < 7:
    time.sleep(0.01)
print("started", flush=True)
if how == "forgets":
    os._exit(0)
if how == "exits":
    sys.exit(1)
time.sleep(600)
"""


def until(condition: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    """Waits for `condition`; fails where it hangs."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def open_files() -> set[str]:
    """The numbers of this process's file descriptors."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def marker() -> Iterator[str]:
    """A word for command lines, of which no process may be left."""
    word = f"marker-{uuid4().hex}"
    yield word
    left = processes.with_marker(word)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def started(code: str, *arguments: str, log_path: Path, **limits: Any) -> EngineProcess:
    argv = [sys.executable, "-I", "-S", "-c", code, *arguments]
    return EngineProcess(argv, env=os.environ, log_path=log_path, **{"grace_s": 0.2, **limits})


def tree(marker: str, tmp_path: Path) -> EngineProcess:
    """The seven, all of them running."""
    process = started(TREE, marker, str(tmp_path / "end"), log_path=tmp_path / "log")
    until(lambda: process.log().count("up") == 7, "seven processes")
    assert len(processes.with_marker(marker)) == 8  # with the watchdog
    return process


def ended(process: EngineProcess) -> int:
    """The exit code of a process that ends by itself."""
    until(lambda: process.poll() is not None, "the end of the process")
    code = process.end()
    assert code is not None
    return code


def test_the_tree_goes_when_its_first_process_ends(marker: str, tmp_path: Path) -> None:
    with tree(marker, tmp_path) as process:
        assert process.poll() is None
        (tmp_path / "end").touch()
        until(lambda: process.poll() is not None, "the end of the process")
        assert process.poll() == 3
        assert processes.gone(marker)
    assert process.end() == process.poll() == 3


def test_the_tree_goes_with_end(marker: str, tmp_path: Path) -> None:
    process = tree(marker, tmp_path)
    assert process.end() == -signal.SIGKILL  # SIGTERM was ignored
    others = [line for line in processes.with_marker(marker).values() if "watchdog.py" not in line]
    assert others == []  # at once: only the watchdog may be on its way out
    assert process.end() == process.poll() == -signal.SIGKILL
    assert processes.gone(marker)


def test_the_tree_goes_with_an_exception(marker: str, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="from within"), tree(marker, tmp_path):
        raise KeyError("from within")
    assert processes.gone(marker)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGKILL to the group", "SIGTERM", "SIGINT", "exits", "forgets"])
def test_the_tree_goes_with_its_starter(how: str, marker: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-I", "-S", "-c", TREE, marker, str(tmp_path / "end")]
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path / "log"), how, marker, *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "started\n"
        if how == "SIGKILL to the group":
            os.killpg(starter.pid, signal.SIGKILL)
        elif how.startswith("SIG"):
            starter.send_signal(getattr(signal, how))
        starter.wait(60)
    assert processes.gone(marker)


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_an_exit_code_is_reported(code: int, tmp_path: Path) -> None:
    with started(f"raise SystemExit({code})", log_path=tmp_path / "log") as process:
        assert ended(process) == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_a_signal_is_reported_as_a_negative_number(number: signal.Signals, tmp_path: Path) -> None:
    with started(f"import os; os.kill(os.getpid(), {number})", log_path=tmp_path / "log") as process:
        assert ended(process) == -number


def test_its_pid_is_that_of_the_program(tmp_path: Path) -> None:
    with started("import os; print(os.getpid())", log_path=tmp_path / "log") as process:
        ended(process)
        assert int(process.log()) == process.pid


POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("up", flush=True)
time.sleep(600)
"""


def test_a_program_that_hears_sigterm_has_its_own_exit_code(tmp_path: Path) -> None:
    with started(POLITE, log_path=tmp_path / "log", grace_s=60) as process:
        until(lambda: "up" in process.log(), "the program")
        assert process.end() == 7


def test_a_program_that_does_nothing_about_sigterm_dies_of_it(tmp_path: Path) -> None:
    with started(
        "import time; print('up', flush=True); time.sleep(600)", log_path=tmp_path / "log"
    ) as process:
        until(lambda: "up" in process.log(), "the program")
        assert process.end() == -signal.SIGTERM


def test_a_killed_watchdog_takes_the_program_along(marker: str, tmp_path: Path) -> None:
    with started("import time; time.sleep(600)", marker, log_path=tmp_path / "log") as process:
        [watchdog] = [pid for pid, line in processes.with_marker(marker).items() if "watchdog.py" in line]
        assert process.poll() is None
        os.kill(watchdog, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
    assert processes.gone(marker)


def test_the_log_is_of_this_process_alone(tmp_path: Path) -> None:
    log = tmp_path / "not" / "yet" / "there.log"
    both = "import os; os.write(1, b'out '); os.write(2, b'err %d \\xff')"
    for number in (1, 2):
        with started(both % number, log_path=log) as process:
            ended(process)
            assert process.log() == f"out err {number} \ufffd"
    assert log.read_bytes() == b"out err 1 \xffout err 2 \xff"


def test_of_a_long_log_the_end_is_read(tmp_path: Path) -> None:
    with started("print('x' * 500_000); print('the end')", log_path=tmp_path / "log") as process:
        ended(process)
        assert process.log().endswith("x\nthe end\n")
        assert len(process.log()) == 256 * 1024
    assert (tmp_path / "log").stat().st_size > 500_000


def test_the_program_gets_its_arguments_environment_and_no_input(tmp_path: Path) -> None:
    words = ["$HOME", "a b", "; echo no", "'\"", "", "é\n"]
    code = (
        "import os, sys; print([sys.argv[1:], os.environ.get('WHO'), 'HOME' in os.environ, sys.stdin.read()])"
    )
    argv = [sys.executable, "-I", "-S", "-c", code, *words]
    with EngineProcess(argv, env={"WHO": "me", "LC_ALL": "C.UTF-8"}, log_path=tmp_path / "log") as process:
        ended(process)
        assert process.log().strip() == str([words, "me", False, ""])


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    before = open_files()
    for program, reason in {
        "/no/such/program": "No such file",
        str(tmp_path / "text"): "Permission denied",
    }.items():
        with pytest.raises(OSError, match=reason) as raised:
            EngineProcess([program], env=os.environ, log_path=tmp_path / "log")
        assert program in str(raised.value)
    assert open_files() <= before


@pytest.mark.parametrize(
    ("watchdog", "detail"),
    [
        (f"os.write(int(sys.argv[2]), b'error {errno.EAGAIN} no process left\\n')", "no process left"),
        ("sys.exit('no module named os')", "the watchdog did not start"),
    ],
)
def test_an_engine_that_the_machine_cannot_start_is_not_its_configurations_fault(
    watchdog: str, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert failure_of_starting([sys.executable], tmp_path / "file" / "log").cause is Cause.INTERNAL
    monkeypatch.setattr(engine_process, "_WATCHDOG", tmp_path / "watchdog.py")
    (tmp_path / "watchdog.py").write_text(f"import os, sys; {watchdog}")
    failure = failure_of_starting([sys.executable], tmp_path / "log")
    assert failure.cause is Cause.INTERNAL and detail in failure.detail


def test_a_program_that_is_none_is_the_configurations_fault(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    (tmp_path / "rubbish").write_bytes(b"no program")
    (tmp_path / "rubbish").chmod(0o755)
    for program in ("/no/such/program", str(tmp_path / "text"), str(tmp_path / "rubbish")):
        failure = failure_of_starting([program], tmp_path / "log")
        assert failure.cause is Cause.CRASH and program in failure.detail


def failure_of_starting(argv: list[str], log_path: Path) -> Failure:
    how = {"env": os.environ, "log_path": log_path, "timeout_s": 30.0, "model": "m", "signs": ()}
    with pytest.raises(TrialFailed) as raised, launched(lambda port: argv, **how):
        pass
    return raised.value.failure


def test_no_file_descriptor_is_kept(tmp_path: Path) -> None:
    before = open_files()
    with started("pass", log_path=tmp_path / "log") as process:
        ended(process)
    started("import time; time.sleep(600)", log_path=tmp_path / "log").end()
    assert open_files() <= before


def test_of_a_log_that_grows_too_long_the_middle_is_cut_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    code = (
        "import time\nprint('first', flush=True)\n"
        "for _ in range(200): print('x' * 4095, flush=True); time.sleep(0.005)\n"
        "print('last', flush=True); time.sleep(600)"
    )
    with started(code, log_path=log, log_bytes=100_000) as process:
        until(lambda: process.log().endswith("last\n"), "the end of the log")
        assert process.log().startswith("first\n")
    text = log.read_text()
    assert text.startswith("before\nfirst\n")
    assert "bytes of log were cut out here]" in text
    assert len(text) < 400_000


def test_the_kernel_takes_the_program_before_its_starter(tmp_path: Path) -> None:
    with started("print(open('/proc/self/oom_score_adj').read())", log_path=tmp_path / "log") as process:
        ended(process)
        assert process.log().strip() == "1000"


def test_a_program_that_the_kernel_kills_for_memory_is_known_to_have_starved(tmp_path: Path) -> None:
    group = Path("/sys/fs/cgroup/memory") / f"tuner-{uuid4().hex}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(2**26))
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    code = (
        "import os, sys\n"
        "open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "held = []\nwhile True: held.append(bytearray(2**20))"
    )
    argv = [sys.executable, "-I", "-S", "-c", code, str(group / "cgroup.procs")]
    try:
        with EngineProcess(argv, env=os.environ, log_path=tmp_path / "log") as process:
            assert not process.starved()
            assert ended(process) == -signal.SIGKILL
            assert process.starved()
    finally:
        group.rmdir()


TALKATIVE = """
import json, os, sys, time
print(os.environ["HF_TOKEN"], json.dumps(dict(os.environ)), flush=True)
time.sleep(float(sys.argv[1]))
"""
ITS_STARTER = """
import os, sys, time
from pathlib import Path
from tuner.engines.process import EngineProcess

talkative, ended, log = sys.argv[1], sys.argv[2], Path(sys.argv[3])
argv = [sys.executable, "-c", talkative, "0" if ended == "by itself" else "600"]
with EngineProcess(argv, env=os.environ, log_path=log, grace_s=0.2) as process:
    while "as it is" not in log.read_text():
        time.sleep(0.01)
    while ended == "by itself" and process.poll() is None:
        time.sleep(0.01)
    if ended == "by the death of its starter":
        os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("ended", ["by itself", "by its starter", "by the death of its starter"])
def test_no_secret_of_the_environment_stays_in_the_log(ended: str, tmp_path: Path) -> None:
    """Whatever ends it. What others wrote there before is theirs."""
    secret, log = 'hunter2"hunter2', tmp_path / "log"
    log.write_text(f"before: {secret}\n")
    env = {**os.environ, "HF_TOKEN": secret, "PLAIN": "as it is"}
    command = [sys.executable, "-c", ITS_STARTER, TALKATIVE, ended, str(log)]
    subprocess.run(command, env=env, timeout=60, check=False)
    until(lambda: "[secret]" in log.read_text(), "the end of the watchdog")
    before, after = log.read_text().split("\n", 1)
    assert before == f"before: {secret}"
    assert "hunter2" not in after and '"PLAIN": "as it is"' in after


def test_an_orphan_that_has_ended_is_gone_while_the_program_runs(tmp_path: Path) -> None:
    """Whoever waits for its end, as `ray job stop` does, would wait for as long as the program runs."""
    orphan = "import os, sys; pid = os.fork(); pid and (print(pid, flush=True), os._exit(0)); os._exit(0)"
    program = (
        f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {orphan!r}]); time.sleep(60)"
    )
    with EngineProcess([sys.executable, "-c", program], env=os.environ, log_path=tmp_path / "log") as process:
        deadline = time.monotonic() + 30
        while not (said := process.log().strip()) or Path(f"/proc/{said}").exists():
            assert time.monotonic() < deadline, f"process {said} is a zombie"
            time.sleep(0.05)
        assert process.poll() is None

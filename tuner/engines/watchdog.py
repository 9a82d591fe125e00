"""Runs one command and ends its whole process tree when its starter is gone, however that went.

A script of its own, started by `process.py` with an isolated interpreter and the standard library only:

    python -I -S watchdog.py GRACE_S STATUS_FD LOG_BYTES SECRETS N THEN... COMMAND...

It detaches (a second fork and a session of its own, so that whoever kills the starter's children or
process group does not kill it), becomes the reaper of orphaned descendants, starts COMMAND in another
session, and writes `pid N` and later `exit CODE` to STATUS_FD. When COMMAND ends, or standard input
reaches its end because the starter closed it or died, SIGTERM goes to COMMAND's group, after GRACE_S
seconds SIGKILL, and then every remaining descendant is killed, whatever session it moved to. Last of all
the N words of THEN are run, where N is not 0: what is no descendant (a container) is ended by a command.
Of a log on standard output that grows beyond LOG_BYTES the middle is cut out, so that no disk is filled; at
the end it keeps none of the values of the environment variables that SECRETS names, with commas between.
docs/adr/0003-watchdog.md has what was measured with simpler means.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
_POLL_S = 0.05
_KILLED_FIRST = "1000"  # <linux/oom.h>: where memory is short, the kernel takes the engine, not Ray
_HIDDEN = b"[secret]"  # as `tuner.secrets` writes it
_THEN_TRIES, _THEN_LIMIT_S = 3, 60.0  # a daemon that is busy or restarting may refuse once


def _prctl(option: int, argument: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, argument, 0, 0, 0)


def _descendants() -> list[int]:
    """Every living process below this one, found through /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # pid (comm) state ppid ...; comm may hold spaces and parentheses
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _reap() -> None:
    """Collects orphans that have ended and were handed to this process."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _reap_orphans(command: "subprocess.Popen[bytes]") -> None:
    """The same while `command` runs: who waits for an orphan's end, like `ray job stop`, sees none before."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == command.pid:
                return
            os.waitpid(ended.si_pid, 0)


def _end_tree(command: "subprocess.Popen[bytes]", grace_s: float) -> int:
    """Ends everything below this process; returns the command's exit code."""
    if command.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(grace_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(command.pid, signal.SIGKILL)
    code = command.wait()
    while remaining := _descendants():
        _signal_all(remaining, signal.SIGKILL)
        _reap()
        time.sleep(0.01)
    return code


def _run_then(then: list[str]) -> None:
    """Runs `then` until it succeeds, a few times at the most."""
    for attempt in range(_THEN_TRIES):
        time.sleep(attempt)
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                then, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=_THEN_LIMIT_S, check=False
            )
            if done.returncode == 0:
                return


def _cut(start: int, most: int) -> None:
    """Leaves a quarter of `most` at each end of the log, which this run began at `start`.

    A line or two that come at this very moment are lost.
    """
    size = os.fstat(1).st_size
    if size - start <= most:
        return
    kept = most // 4
    end = os.pread(1, kept, size - kept)
    os.ftruncate(1, start + kept)
    os.write(1, f"\n[{size - start - 2 * kept} bytes of log were cut out here]\n".encode() + end)


def _hide(start: int, names: list[str]) -> None:
    """Takes the values of those environment variables out of the log, which this run began at `start`."""
    values = {os.environb.get(name.encode(), b"") for name in names} - {b""}
    values |= {json.dumps(value.decode(errors="replace"))[1:-1].encode() for value in values}
    log = os.pread(1, os.fstat(1).st_size - start, start)
    clean = log
    for value in sorted(values, key=len, reverse=True):
        clean = clean.replace(value, _HIDDEN)
    if clean != log:
        os.ftruncate(1, start)
        os.write(1, clean)


def main(
    grace_s: float, status_fd: int, log_bytes: int, secrets: list[str], then: list[str], argv: list[str]
) -> None:
    """Detaches, runs `argv`, waits for its end or for the end of standard input, runs `then`."""
    if os.fork():
        os._exit(0)
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def in_child() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_KILLED_FIRST)

    def say(text: str) -> None:
        with contextlib.suppress(OSError):  # the starter may be gone
            os.write(status_fd, f"{text}\n".encode())

    os.set_inheritable(status_fd, False)
    log_start = os.fstat(1).st_size
    try:
        command = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=in_child,  # noqa: PLW1509  one thread
        )
    except OSError as error:
        say(f"error {error.errno} {error.strerror}")
        return
    say(f"pid {command.pid}")
    poller = select.poll()
    poller.register(0, select.POLLIN | select.POLLHUP)
    while command.poll() is None and not poller.poll(_POLL_S * 1000):
        _cut(log_start, log_bytes)
        _reap_orphans(command)
    code = _end_tree(command, grace_s)
    if secrets:
        with contextlib.suppress(OSError):  # the disk is full, say
            _hide(log_start, secrets)
    if then:
        _run_then(then)
    say(f"exit {code}")


if __name__ == "__main__":
    words = sys.argv[1:]
    first = 5 + int(words[4])
    named = [name for name in words[3].split(",") if name]
    main(float(words[0]), int(words[1]), int(words[2]), named, words[5:first], words[first:])

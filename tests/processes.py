"""Finding processes without any tool, through /proc."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path


def command_lines() -> dict[int, str]:
    """Every process's command line by pid."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found[int(path.parent.name)] = line
    return found


def with_marker(marker: str) -> dict[int, str]:
    """The processes whose command line holds `marker`."""
    return {pid: line for pid, line in command_lines().items() if marker in line}


def below(root: int) -> dict[int, str]:
    """The command lines of the processes that descend from `root`, by pid."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found: set[int] = set()
    while grown := {pid for pid, parent in parents.items() if parent in {root, *found}} - found:
        found |= grown
    return {pid: line for pid, line in command_lines().items() if pid in found}


def at_the_other_end(pids: Iterable[int]) -> set[int]:
    """The processes outside of `pids` that hold the pipe which is the standard input of one of them."""
    pids = set(pids)
    inputs = {_open_file(pid, "0") for pid in pids}
    pipes = {link for link in inputs if link.startswith("pipe:")}
    return {pid for pid in command_lines() if pid not in pids and pipes & _open_files(pid)}


def _open_file(pid: int, number: str) -> str:
    try:
        return str(Path(f"/proc/{pid}/fd/{number}").readlink())
    except OSError:
        return ""


def _open_files(pid: int) -> set[str]:
    try:
        numbers = [path.name for path in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return set()
    return {_open_file(pid, number) for number in numbers}


def gone(marker: str, within_s: float = 30.0) -> bool:
    """Whether every process with `marker` ends within a generous limit."""
    deadline = time.monotonic() + within_s
    while with_marker(marker):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def appeared(marker: str, within_s: float = 60.0) -> bool:
    """Whether a process with `marker` is started within a generous limit."""
    deadline = time.monotonic() + within_s
    while not with_marker(marker):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def listening(port: int) -> set[str]:
    """The addresses on which sockets listen on TCP `port`, as /proc/net/tcp and tcp6 have them."""
    found = set()
    for table, width in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            address, _, number = line.split()[1].rpartition(":")
            if line.split()[3] == "0A" and int(number, 16) == port:  # words of 32 bits in the CPU's order
                words = struct.unpack(f">{len(address) // 8}I", bytes.fromhex(address))
                found.add(socket.inet_ntop(width, struct.pack(f"={len(words)}I", *words)))
    return found

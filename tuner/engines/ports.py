"""Which process listens on a port: an open port alone does not say whose server answers on it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_LISTEN = "0A"  # state of a listening socket in /proc/net/tcp, see proc_pid_net(5)


def listeners(port: int) -> frozenset[str] | None:
    """The sockets (inodes) that listen on TCP `port`; None where the system has no /proc/net/tcp."""
    tables = [table for name in ("tcp", "tcp6") if (table := Path("/proc/net") / name).exists()]
    if not tables:
        return None
    found = set()
    for table in tables:
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return frozenset(found)


def taken_by_another(root: int, port: int) -> bool:
    """Whether only processes outside the tree below `root` listen on `port`; False where that is unknown.

    Looking through a tree takes time. A socket that is closed meanwhile tells nothing: a server that fails
    while it starts had one for some milliseconds.
    """
    found = listeners(port)
    if not found or _holds(root, found):
        return False
    return bool(found & (listeners(port) or frozenset()))


def _holds(root: int, sockets: frozenset[str]) -> bool:
    """Whether a process of the tree below `root` (itself included) has one of the `sockets` open."""
    links = {f"socket:[{inode}]" for inode in sockets}
    return any(links & _open_files(pid) for pid in _tree(root))


def _open_files(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(str(descriptor.readlink()))
    return found


def _tree(root: int) -> set[int]:
    """`root` and the processes that descend from it, or that run in its session."""
    parents, sessions = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            fields = stat.read_text().rpartition(")")[2].split()  # pid (comm) state ppid pgrp session ...
            pid = int(stat.parent.name)
            parents[pid], sessions[pid] = int(fields[1]), int(fields[3])
    tree = {root} | {pid for pid, session in sessions.items() if session == root}
    grown = True
    while grown:
        below = {pid for pid, parent in parents.items() if parent in tree} - tree
        tree |= below
        grown = bool(below)
    return tree

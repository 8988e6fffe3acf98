"""Processes of this machine, seen in /proc, and its ports."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path


def free_port() -> int:
    """A free port, below those that the kernel gives to outgoing connections (32768 and above): any other process might
    take one of them before our server has bound it.
    """
    while True:
        port = random.SystemRandom().randrange(12000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def command_of(pid: int) -> str:
    """A process's command line, empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def with_variable(name: str, value: str, part: str = "") -> list[int]:
    """Processes that were started with this value of a variable, and whose command line has `part`."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (folder / "environ").read_bytes().split(b"\0")
            command = command_of(int(folder.name))
            if f"{name}={value}".encode() in variables and command and part in command:
                pids.append(int(folder.name))
    return pids


def below(pid: int, part: str = "") -> list[int]:
    """Processes below `pid` whose command line has `part`."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parents[int(folder.name)] = parent_of(int(folder.name))
    children, row = [], [pid]
    while row:
        row = [child for child, parent in parents.items() if parent in row]
        children += [child for child in row if part in command_of(child)]
    return children

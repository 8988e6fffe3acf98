"""Processes that outlive the command that started them: started in their own group, ended as that group."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Process", "carriers", "end_all", "family", "kill", "living", "start"]


@dataclass(frozen=True)
class Process:
    """A process that was started here; pid and start time together name it even after pids came round again."""

    name: str
    pid: int
    started: str


def start(name: str, command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path) -> Process:
    """Start `command` in `folder` as the leader of its own session, with its output in `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # A shell's background job ignores SIGINT, and its children would inherit that; a handler is not inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                list(command),
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    finally:
        signal.signal(signal.SIGINT, before)
    # It outlives this process on purpose, so nobody waits for it.
    child.returncode = 0
    return Process(name, child.pid, _start_time(child.pid) or "")


def living(process: Process) -> bool:
    """Whether exactly this process still runs."""
    return bool(process.started) and _start_time(process.pid) == process.started


def end_all(processes: Iterable[Process], patience: float = 30.0) -> list[str]:
    """End these processes, their groups and what descends from them; nothing else.

    Returns:
        The names of those that had to be killed.
    """
    ours = [process for process in processes if living(process)]
    # A worker's flow runs lead groups of their own, so they are looked up while their parents still live.
    below = family(ours)
    for process in ours:
        _signal_group(process.pid, signal.SIGTERM)
    end = time.monotonic() + patience
    while any(living(process) for process in ours) and time.monotonic() < end:
        time.sleep(0.1)
    killed = [process.name for process in ours if living(process)]
    for process in ours:
        if living(process):
            _signal_group(process.pid, signal.SIGKILL)
    kill(below)
    return killed


def family(processes: Iterable[Process]) -> dict[int, str]:
    """What descends from those of these processes that live: pids with their start times."""
    return _with_start(pid for process in processes if living(process) for pid in _descendants(process.pid))


def carriers(name: str, value: str) -> dict[int, str]:
    """Processes that have this variable in the environment that they were started with: pids with their start times.

    They are found whoever their parents are by now. Only on systems with /proc; elsewhere there are none.
    """
    wanted = f"{name}={value}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        # Other users' processes, and those that end just now, cannot be read.
        with suppress(OSError):
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return _with_start(found)


def kill(processes: Mapping[int, str]) -> list[int]:
    """Kill exactly these processes, pids with their start times; returns the pids of those that lived."""
    ours = [pid for pid, started in processes.items() if _start_time(pid) == started]
    for pid in ours:
        _signal(pid, signal.SIGKILL)
    return ours


def _with_start(pids: Iterable[int]) -> dict[int, str]:
    return {pid: started for pid in pids if (started := _start_time(pid)) is not None}


def _signal_group(leader: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, number)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for other, parent in _parents():
        parents.setdefault(parent, []).append(other)
    found, waiting = [], [pid]
    while waiting:
        below = parents.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _parents() -> list[tuple[int, int]]:
    if Path("/proc/self").exists():
        fields = [(int(path.name), _stat(int(path.name))) for path in Path("/proc").glob("[0-9]*")]
        return [(pid, int(stat[1])) for pid, stat in fields if stat]
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [(int(line.split()[0]), int(line.split()[1])) for line in listed.splitlines()]


def _start_time(pid: int) -> str | None:
    """When a process started, None where it is gone or a zombie."""
    if Path("/proc/self").exists():
        stat = _stat(pid)
        return None if not stat or stat[0] in ("Z", "X") else stat[19]
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True).stdout.split()
    return None if not shown or shown[0].startswith("Z") else " ".join(shown[1:])


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command, whose own text may hold blanks and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []

"""Machines in their own network and process namespaces, on a network with this one; needs root and iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ADDRESS = "10.213.77.1"
"""Address at which machines find the servers of this one."""
BRIDGE = "pcbr0"
STEADY = ("FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_DISABLE_SHM=1")


def obstacle() -> str:
    """Why there can be no machines here; empty if there can."""
    if os.geteuid() != 0:
        return "machines with networks of their own need root"
    absent = [name for name in ("ip", "unshare") if shutil.which(name) is None]
    absent += [] if _clock_library() else ["libfaketime"]
    if absent:
        return f"not installed: {', '.join(absent)}"
    probe = subprocess.run(["ip", "netns", "add", "pc-probe"], capture_output=True, text=True)
    _ip("netns", "delete", "pc-probe", check=False)
    return probe.stderr.strip()


def _clock_library() -> str:
    return next(map(str, Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), "")


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True)


class Machine:
    """A namespace with an address, whose processes see only each other."""

    def __init__(self, name: str, number: int, folder: Path) -> None:
        self.space, self.link, self.folder = f"pc-{name}", f"pc-{name}", folder / name
        self.folder.mkdir()
        _ip("netns", "add", self.space)
        _ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        _ip("link", "set", self.link, "master", BRIDGE, "up")
        _ip("-n", self.space, "addr", "add", f"10.213.77.{number}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", self.space, "link", "set", device, "up")

    def start(self, code: str, *arguments: str, clock: str = "", **environment: str) -> subprocess.Popen[str]:
        """Run Python code there, with its clock ahead by `clock` (`+10m`); ending it ends all that it started."""
        enter = ["ip", "netns", "exec", self.space]
        enter += ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        # Not the command `faketime`, whose semaphores are named after process numbers, which machines share.
        ahead = ["env", f"LD_PRELOAD={_clock_library()}", f"FAKETIME={clock}", *STEADY] if clock else []
        return subprocess.Popen(
            [*enter, *ahead, sys.executable, "-c", code, *arguments],
            env={**os.environ, **environment, "PARACLIP_LOCAL": str(self.folder)},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def cut_off(self) -> None:
        """Cut off its network: nothing that it sends arrives, and nothing reaches it."""
        _ip("link", "set", self.link, "down")

    def join_again(self) -> None:
        _ip("link", "set", self.link, "up")


@contextmanager
def machines(folder: Path, names: Sequence[str]) -> Iterator[Mapping[str, Machine]]:
    """Machines with these names on one network."""
    _ip("link", "add", BRIDGE, "type", "bridge")
    try:
        _ip("addr", "add", f"{ADDRESS}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        yield {name: Machine(name, 2 + number, folder) for number, name in enumerate(names)}
    finally:
        for name in names:
            _ip("netns", "delete", f"pc-{name}", check=False)
            _ip("link", "delete", f"pc-{name}", check=False)
        _ip("link", "delete", BRIDGE)

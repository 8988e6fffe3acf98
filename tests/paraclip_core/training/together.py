"""The tiny run in two processes, undisturbed, killed and gone on with: together.py FOLDER OPTIONS, which are JSON."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny import SIGMOID, carry_out, tiny_job

from paraclip_core.lifetime import die_with
from paraclip_core.training.processes import joined
from paraclip_core.training.trainer import train


def main(folder: Path, options: dict[str, Any]) -> None:
    """Leave `undisturbed`, `killed` as a kill of the first process left it, and `again`, which went on from there.

    And `sigmoid`, for a base with a logit bias.
    """
    assert two(folder / "undisturbed", options) == [0, 0]
    assert two(folder / "sigmoid", options, 0, **SIGMOID) == [0, 0]
    assert two(folder / "killed", options, die=6)[0] == -signal.SIGKILL
    shutil.copytree(folder / "killed", folder / "again")
    # Of these only the first one reads the checkpoint.
    assert two(folder / "again", options) == [0, 0]


def two(folder: Path, options: dict[str, Any], die: int = 0, **base: Any) -> list[int]:
    """Train in two processes, as torchrun starts them; how each ended. Where one fails, the other is ended."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    parent, children = os.getpid(), []
    for rank in range(2):
        # A fork, because importing torch takes longer than the run.
        child = os.fork()
        if child == 0:
            die_with(parent)
            os.environ.update(address, RANK=str(rank))
            take_part(folder, options, die, base)
            os._exit(0)
        children.append(child)
    ends: dict[int, int] = {}
    while len(ends) < 2:
        child, status = os.wait()
        ends[child] = os.waitstatus_to_exitcode(status)
        if ends[child]:
            for other in {*children} - {*ends}:
                os.kill(other, signal.SIGKILL)
    return [ends[child] for child in children]


def take_part(folder: Path, options: dict[str, Any], die: int, base: Mapping[str, Any]) -> None:
    """Train; the first process writes the weights, or kills itself in its n-th validation."""
    torch.set_num_threads(1)
    job = tiny_job(folder, options=options, base=base)
    validate, calls = job.validate, 0

    def dying() -> Mapping[str, float]:
        nonlocal calls
        calls += 1
        if calls == die:
            os.kill(os.getpid(), signal.SIGKILL)
        assert validate is not None
        return validate()

    with joined(torch.device("cpu")) as processes:
        job = replace(job, processes=processes, validate=dying)
        if processes.first:
            carry_out(job, folder)
            (folder / "validations").write_text(str(calls))
        else:
            train(job)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))

"""The tiny run under torchrun, with its options as JSON: torchrun --nproc-per-node 2 together.py FOLDER OPTIONS.

With `die` among the options the first process ends itself in its n-th validation.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import tiny_job

from paraclip_core.training.processes import joined
from paraclip_core.training.trainer import train


def main(folder: Path, changed: dict) -> None:
    """Train together; the first process writes the weights."""
    torch.set_num_threads(1)
    die = changed.pop("die", 0)
    job = tiny_job(folder, **changed)
    validate = job.validate
    calls = 0

    def dying() -> Mapping[str, float]:
        nonlocal calls
        calls += 1
        if calls == die:
            os.kill(os.getpid(), signal.SIGKILL)
        assert validate is not None
        return validate()

    with joined(torch.device("cpu")) as processes:
        train(replace(job, processes=processes, validate=dying))
        if processes.first:
            (folder / "validations").write_text(str(calls))
            save_file(
                {name: value.contiguous() for name, value in job.clip.model.state_dict().items()}, folder / "w.st"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))

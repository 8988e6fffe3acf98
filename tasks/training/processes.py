"""Training in as many processes of one machine as ``run.processes`` says.

They are started by torch's elastic launcher, which is what torchrun is made of: ``python -m
paraclip.tasks.training.processes REQUEST`` with RANK, WORLD_SIZE and the rest in the environment. The first one leaves
the trained weights in the scratch folder, where the stage takes them up.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from paraclip.storage.artifacts import ArtifactStore, WorkFolder
from paraclip.storage.files import convert_disk_errors
from paraclip.tasks.run.run import Run, StageContext, settings_of
from paraclip.tasks.run.status import StatusFile, polling, read_failure, relay_from
from paraclip_core.clip.model import trained_parameters
from paraclip_core.config import meaning
from paraclip_core.errors import ConfigError, ParaclipError, TrainingError
from paraclip_core.lifetime import TempDir, die_with
from paraclip_core.tensor_file import write_tensors
from paraclip_core.training.processes import bound_kernel_cache, joined
from paraclip_core.training.trackers import TrackedRun, Trackers
from paraclip_core.training.trainer import TrainingJob, TrainingResult, train

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
WEIGHTS, RESULT = "weights.safetensors", "result.json"


def train_together(ctx: StageContext, stage: str, job: TrainingJob) -> TrainingResult:
    """Train a stage's job, in this process or in as many as the settings say.

    Args:
        ctx: the stage's context.
        stage: its name among the preparations of :mod:`paraclip.tasks.training.bodies`; each process makes its own job.
        job: the job as it was made here. Its model ends up with the trained weights, its rows are on disk already.
    """
    count = ctx.settings.run.processes
    if count == 1:
        return train(replace(job, trackers=_trackers(ctx, stage, job)), ctx.progress)
    if job.clip.device.type == "cuda" and torch.cuda.device_count() < count:
        raise ConfigError(
            f"run.processes is {count}, but {torch.cuda.device_count()} CUDA devices are here; lower it, "
            "or set run.device to cpu"
        )
    folder = ctx.work.scratch / "processes"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt
    folder.mkdir(parents=True)
    # Why a process ended must find room where the disk of the root is full.
    with TempDir() as statuses, polling(relay_from(statuses / "rank-0.json", ctx.progress), POLL_SECONDS):
        request = {
            "parent": os.getpid(),
            "stage": stage,
            "settings": ctx.settings.model_dump(mode="json"),
            "root": str(ctx.store.root),
            "inputs": {name: artifact.fingerprint for name, artifact in ctx.inputs.items()},
            "out": str(ctx.work.out),
            "scratch": str(ctx.work.scratch),
            "statuses": str(statuses),
        }
        (folder / "request.json").write_text(json.dumps(request))
        _launch(folder, statuses, count)
    weights = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, parameter in trained_parameters(job.clip.model).items():
            parameter.copy_(weights[name])
    return TrainingResult(**json.loads((folder / RESULT).read_text()))


def _trackers(ctx: StageContext, stage: str, job: TrainingJob) -> Trackers:
    name = f"{ctx.settings.name}-{stage}-{ctx.work.out.parent.name[:12]}"
    run = TrackedRun(name, ctx.store.root / "logs/trackers", meaning(job.options))
    return Trackers(ctx.settings.run.trackers, run)


def _launch(folder: Path, statuses: Path, count: int) -> None:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"paraclip-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=POLL_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)(
            "-P", "-m", "paraclip.tasks.training.processes", str(folder / "request.json")
        )
    except SignalException as error:
        raise TrainingError(f"stopped by {error.sigval.name}; run again to resume") from error
    except ChildFailedError as error:
        for status in sorted(statuses.glob("rank-*.json")):
            if (failure := read_failure(status, TrainingError)) is not None:
                raise failure from error
        failed = ", ".join(
            f"{rank} ({failure.signal_name() if failure.exitcode < 0 else f'code {failure.exitcode}'})"
            for rank, failure in sorted(error.failures.items())
        )
        raise TrainingError(f"training process {failed} of {count} died; run again to resume") from error


def _main(request_path: Path) -> int:
    request: dict[str, Any] = json.loads(request_path.read_text())
    die_with(request["parent"])
    rank = int(os.environ["RANK"])
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s %(levelname)s %(name)s {rank}: %(message)s")
    status = StatusFile(Path(request["statuses"], f"rank-{rank}.json"))
    try:
        with convert_disk_errors(request_path.parent):
            _take_part(request, rank, request_path.parent, status)
    except ParaclipError as error:
        log.exception("training failed in process %d", rank)
        status.fail(error)
        return error.exit_code
    return 0


def _take_part(request: dict[str, Any], rank: int, folder: Path, status: StatusFile) -> None:
    from paraclip.tasks.training.bodies import PREPARATIONS  # which imports this module

    settings = settings_of(request["settings"])
    device = torch.device(settings.run.device if settings.run.device != "auto" else "cpu")
    if torch.cuda.is_available() and settings.run.device != "cpu":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        settings = settings.model_copy(update={"run": settings.run.model_copy(update={"device": str(device)})})
    bound_kernel_cache()
    threads = settings.run.threads or os.cpu_count() or 1
    torch.set_num_threads(max(1, threads // int(os.environ["WORLD_SIZE"])))
    store = ArtifactStore(request["root"])
    inputs = {name: artifact for name, value in request["inputs"].items() if (artifact := store.find(name, value))}
    ctx = StageContext(Run(settings, store), inputs, WorkFolder(Path(request["out"]), Path(request["scratch"])))
    job = PREPARATIONS[request["stage"]](ctx).job(validates=rank == 0)
    if rank == 0:
        job = replace(job, trackers=_trackers(ctx, request["stage"], job))
    with joined(device) as processes:
        result = train(replace(job, processes=processes), status.progress)
    if rank == 0:
        weights = {name: p.detach().cpu().contiguous() for name, p in trained_parameters(job.clip.model).items()}
        write_tensors(weights, folder / WEIGHTS)
        (folder / RESULT).write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that started it decides
    sys.exit(_main(Path(sys.argv[1])))
